"""The shapes world as training data: captioned images, and edits of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from triptych.data_modules.features.cache import AUTO
from triptych.data_modules.mixed import DatasetConfig, MixedDataModule
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.webdataset import ShardDataModule
from triptych.interfaces import IMAGE_TO_IMAGE, TEXT_TO_IMAGE
from triptych.shapes_world.shards import ensure_edits, ensure_shapes
from triptych.utils.errors import UserError


class ShapesDataModule(ShardDataModule):
    """The embedded shapes world: draws its shards once, then reads them like any others.

    Args:
        folder: folder of the drawn shards: folder/train, /eval, /unseen and /instruct.
        part: training split: "train", or "instruct" with short captions only.
        images: number of training images.
        world_seed: random seed of the drawings.
        tasks, batch_size, num_val_samples, text_only_ratio, conversation_key, max_turns,
            num_workers, seed, length_bucket_batches, features: see `ShardDataModule`.
    """

    def __init__(
        self,
        folder: str = "data/shapes",
        part: Literal["train", "instruct"] = "train",
        images: int = 30000,
        world_seed: int = 0,
        tasks: list[str] | None = None,
        batch_size: int = 16,
        num_val_samples: int = 256,
        text_only_ratio: float = 0.0,
        conversation_key: str = "conversation",
        max_turns: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        length_bucket_batches: int = 1,
        features: str = AUTO,
    ) -> None:
        root = Path(folder)
        super().__init__(
            str(root / part),
            str(root / "eval"),
            tasks,
            batch_size,
            num_val_samples,
            text_only_ratio,
            conversation_key,
            max_turns,
            num_workers,
            seed,
            length_bucket_batches,
            features=features,
        )
        self.folder, self.images, self.world_seed = root, images, world_seed

    def prepare_data(self) -> None:
        try:
            ensure_shapes(self.folder, train=self.images, seed=self.world_seed)
        except ValueError as error:  # something else is in the folder
            raise UserError(str(error)) from error
        super().prepare_data()


class EditsDataModule(MixedDataModule):
    """Draws the shapes world and its edits once, then reads them like any other data sets.

    Args:
        folder: folder of the captioned images, see `ShapesDataModule`.
        edits: folder of the edits: edits/train and edits/eval.
        images, changes: number of captioned images, and of edits, to train on.
        share: of the samples that are edits.
        world_seed: random seed of the drawings.
        batch_size, num_val_samples, num_workers, seed: see `MixedDataModule`.
    """

    def __init__(
        self,
        folder: str = "data/shapes",
        edits: str = "data/edits",
        images: int = 30000,
        changes: int = 40000,
        share: float = 0.6,
        world_seed: int = 0,
        batch_size: int = 16,
        num_val_samples: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 < share < 1:
            raise UserError(f"data.share is {share}; give a share between 0 and 1.")
        self.folder, self.edits = Path(folder), Path(edits)
        self.images, self.changes, self.world_seed = images, changes, world_seed

        def datasets(images: Path, edits: Path) -> dict[str, DatasetConfig]:
            return {
                "captions": DatasetConfig(ShardFolder(images), TEXT_TO_IMAGE, 1 - share),
                "edits": DatasetConfig(ShardFolder(edits), IMAGE_TO_IMAGE, share),
            }

        super().__init__(
            datasets(self.folder / "train", self.edits / "train"),
            datasets(self.folder / "eval", self.edits / "eval"),
            batch_size,
            num_val_samples,
            num_workers,
            seed,
            length_bucket_batches=1,
        )

    def prepare_data(self) -> None:
        try:
            ensure_shapes(self.folder, train=self.images, seed=self.world_seed)
            ensure_edits(self.edits, train=self.changes, seed=self.world_seed)
        except ValueError as error:  # something else is in a folder
            raise UserError(str(error)) from error
        super().prepare_data()
