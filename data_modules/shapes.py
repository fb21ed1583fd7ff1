"""ShapesDataModule and EditsDataModule: the shapes world as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from triptych.data_modules.batching.caption_dropout import NO_DROPOUT, CaptionDropout
from triptych.data_modules.dataset_config import DatasetConfig
from triptych.data_modules.features.cache import AUTO, NONE
from triptych.data_modules.mixed import MixedDataModule
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.webdataset import ShardDataModule
from triptych.interfaces import (
    IMAGE_TO_IMAGE,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    TEXT_TO_IMAGE,
)
from triptych.shapes_world.shards import (
    ensure_edits,
    ensure_shapes,
    ensure_sized,
    ensure_stories,
)
from triptych.utils.errors import UserError

MAX_SIZED = 12000


class ShapesDataModule(ShardDataModule):
    """The shapes world: its shards are drawn once, then read like any other shards.

    Args:
        folder: folder of the drawn shards: folder/train, /eval, /unseen and /instruct.
        part: training split: "train", or "instruct" with short captions only.
        images: number of training images.
        world_seed: random seed of the drawings.
        sized_ratio: fraction of the captioned images to make that show one or two shapes whose
            sizes the caption says; 0 draws none. They are in the folder FOLDER_sized.
        stories_ratio: fraction of the samples of each objective that are stories, conversations in
            which shapes are drawn, changed and asked about; 0 draws none.
        stories: folder of the stories, stories/train and /eval; null is FOLDER_stories.
        num_stories: number of training stories; null is that of images.
        tasks, batch_size, shared_batch, num_val_samples, text_only_ratio, conversation_key,
            max_turns, caption_dropout, num_workers, seed, length_bucket_batches, features: settings
            of `ShardDataModule`.
    """

    def __init__(
        self,
        folder: str = "data/shapes",
        *,
        part: Literal["train", "instruct"] = "train",
        images: int = 30000,
        world_seed: int = 0,
        sized_ratio: float = 0.0,
        stories_ratio: float = 0.0,
        stories: str | None = None,
        num_stories: int | None = None,
        tasks: list[str] | None = None,
        batch_size: int = 16,
        shared_batch: bool = False,
        num_val_samples: int = 256,
        text_only_ratio: float = 0.0,
        conversation_key: str = "conversation",
        max_turns: int | None = None,
        caption_dropout: CaptionDropout = NO_DROPOUT,
        num_workers: int = 0,
        seed: int = 0,
        length_bucket_batches: int = 1,
        features: str = AUTO,
    ) -> None:
        self.folder, self.images, self.world_seed = Path(folder), images, world_seed
        self.stories = Path(stories or f"{folder}_stories")
        self.num_stories = images if num_stories is None else num_stories
        self.sized_ratio, self.stories_ratio = sized_ratio, stories_ratio
        super().__init__(
            str(self.folder / part),
            str(self.folder / "eval"),
            tasks=tasks,
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            text_only_ratio=text_only_ratio,
            conversation_key=conversation_key,
            max_turns=max_turns,
            caption_dropout=caption_dropout,
            num_workers=num_workers,
            seed=seed,
            length_bucket_batches=length_bucket_batches,
            features=features,
        )
        # a folder of features that is named is that of the images
        own = NONE if features == NONE else AUTO
        add_sized(self.datasets, self.folder, sized_ratio, own)
        add_stories(self.datasets, self.stories / "train", stories_ratio, own)
        add_stories(self.val_datasets, self.stories / "eval", stories_ratio, own)

    def prepare_data(self) -> None:
        ensure_shapes(self.folder, train=self.images, seed=self.world_seed)
        if self.sized_ratio:
            draw_sized(self.folder, self.images, self.world_seed)
        if self.stories_ratio:
            ensure_stories(self.stories, train=self.num_stories, seed=self.world_seed)
        super().prepare_data()


def sized_folder(folder: Path) -> Path:
    """Folder of the sized shapes that belong to a folder of shapes."""
    return folder.with_name(f"{folder.name}_sized")


def draw_sized(folder: Path, images: int, world_seed: int) -> None:
    """Draw the sized shapes of a folder of shapes with `images` images, at most MAX_SIZED."""
    ensure_sized(sized_folder(folder), train=min(images, MAX_SIZED), seed=world_seed)


def add_sized(
    datasets: dict[str, DatasetConfig], folder: Path, ratio: float, features: str = AUTO
) -> None:
    """Add the sized shapes of a folder of shapes to what learns images of captions.

    Args:
        datasets: data sets by name; a share `ratio` of the samples of their objective is added.
        folder: folder of the shapes.
        ratio: share from 0 to less than 1; 0 adds none.
        features: of the new data set, see `DatasetConfig`.

    Raises:
        UserError: `ratio` is out of range.
    """
    source = ShardFolder(sized_folder(folder) / "train")
    sized = DatasetConfig(source, TEXT_TO_IMAGE, features=features)
    _add(datasets, "sized", sized, ratio, "sized_ratio")


def add_stories(
    datasets: dict[str, DatasetConfig], folder: Path, ratio: float, features: str = AUTO
) -> None:
    """Add the stories in a folder to each objective of `datasets`, a share `ratio` of its samples.

    Raises:
        UserError: `ratio` is not from 0 to less than 1.
    """
    for task in INTERLEAVED, INTERLEAVED_IMAGES:
        story = DatasetConfig(ShardFolder(folder), task, features=features)
        _add(datasets, task, story, ratio, "stories_ratio")


def _add(
    datasets: dict[str, DatasetConfig], name: str, added: DatasetConfig, ratio: float, setting: str
) -> None:
    """Add a data set as a share `ratio` of the samples of its objective, if there are any."""
    if not 0 <= ratio < 1:
        raise UserError(f"data.{setting} is {ratio}; give a share from 0 to less than 1.")
    others = [each for each in datasets.values() if each.objective == added.objective]
    if not ratio or not others:
        return
    total = sum(1.0 if each.weight is None else each.weight for each in others)
    for each in others:
        each.weight = (1 - ratio) * (1.0 if each.weight is None else each.weight) / total
    added.weight = ratio
    datasets[name] = added


class EditsDataModule(MixedDataModule):
    """The shapes world, its edits and stories: drawn once, then read like any other data sets.

    Args:
        folder: folder of the captioned images, see `ShapesDataModule`.
        edits: folder of the edits: edits/train and edits/eval.
        part: captioned training images, see `ShapesDataModule`.
        images: number of captioned training images.
        changes: number of training edits.
        share: fraction of the samples but the stories that are edits.
        reconstructions: fraction of the samples but the stories that are captioned images to be
            repeated from what the language model sees of them; the rest are captions.
        sized_ratio: fraction of the samples but the stories that are sized shapes.
        stories_ratio, stories, num_stories: settings of `ShapesDataModule`.
        world_seed: random seed of the drawings.
        batch_size, shared_batch, num_val_samples, num_workers, seed: settings of `MixedDataModule`.
    """

    def __init__(
        self,
        folder: str = "data/shapes",
        edits: str = "data/edits",
        *,
        part: Literal["train", "instruct"] = "train",
        images: int = 30000,
        changes: int = 40000,
        share: float = 0.6,
        reconstructions: float = 0.0,
        sized_ratio: float = 0.0,
        stories_ratio: float = 0.0,
        stories: str | None = None,
        num_stories: int | None = None,
        world_seed: int = 0,
        batch_size: int = 16,
        shared_batch: bool = False,
        num_val_samples: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not (0 < share < 1 and 0 <= reconstructions < 1 - share):
            raise UserError(
                f"data.share is {share} and data.reconstructions {reconstructions}; give shares of "
                "0 or more, that of edits above, which leave something for captions."
            )
        self.folder, self.edits = Path(folder), Path(edits)
        self.images, self.changes, self.world_seed = images, changes, world_seed
        self.stories = Path(stories or f"{folder}_stories")
        self.num_stories = images if num_stories is None else num_stories
        self.sized_ratio, self.stories_ratio = sized_ratio, stories_ratio

        def datasets(split: str, shown: str) -> dict[str, DatasetConfig]:
            captions, edits = ShardFolder(self.folder / shown), ShardFolder(self.edits / split)
            rest = 1 - share - reconstructions
            found = {
                "captions": DatasetConfig(captions, TEXT_TO_IMAGE, weight=rest),
                "edits": DatasetConfig(edits, IMAGE_TO_IMAGE, weight=share),
            }
            if reconstructions:
                found["reconstructions"] = DatasetConfig(
                    captions, IMAGE_TO_IMAGE, weight=reconstructions
                )
            return found

        super().__init__(
            datasets("train", part),
            datasets("eval", "eval"),
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            num_workers=num_workers,
            seed=seed,
            length_bucket_batches=1,
        )
        add_sized(self.datasets, self.folder, sized_ratio)
        add_stories(self.datasets, self.stories / "train", stories_ratio)
        add_stories(self.val_datasets, self.stories / "eval", stories_ratio)

    def prepare_data(self) -> None:
        ensure_shapes(self.folder, train=self.images, seed=self.world_seed)
        if self.sized_ratio:
            draw_sized(self.folder, self.images, self.world_seed)
        if self.stories_ratio:
            ensure_stories(self.stories, train=self.num_stories, seed=self.world_seed)
        if self.sized_ratio:
            draw_sized(self.folder, self.images, self.world_seed)
        ensure_edits(self.edits, train=self.changes, seed=self.world_seed)
        super().prepare_data()
