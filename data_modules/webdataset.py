"""WebDataset shards as training data."""

from __future__ import annotations

from triptych.data_modules.decode import Decoder, ImageBackend
from triptych.data_modules.features.cache import AUTO, NONE
from triptych.data_modules.mixed import DatasetConfig, MixedDataModule
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.utils.errors import UserError


class ShardDataModule(MixedDataModule):
    """Captioned images (and conversations about them) from local WebDataset shards.

    Args:
        shards: folder, file or pattern of training shards, see `find_shards`.
        val_shards: validation shards; null validates on the first training samples.
        tasks: tasks of the samples: "text_to_image", "image_to_image" (reconstruction, or
            editing), "image_to_text" or "text_to_text". One batch holds both tasks of an objective;
            tasks of both objectives are joint training, with one batch of each in every step.
        text_only_ratio, conversation_key, max_turns: see `DatasetConfig`.
        features: of the training shards, see `DatasetConfig`; for validation "auto", unless "none".
        batch_size, num_val_samples, num_workers, seed, length_bucket_batches, max_bad_fraction,
            image_backend, max_pixels: see `MixedDataModule`.
    """

    def __init__(
        self,
        shards: str,
        val_shards: str | None = None,
        tasks: list[str] | None = None,
        batch_size: int = 16,
        num_val_samples: int = 256,
        text_only_ratio: float = 0.0,
        conversation_key: str = "conversation",
        max_turns: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        length_bucket_batches: int = 64,
        max_bad_fraction: float = 0.01,
        features: str = AUTO,
        image_backend: ImageBackend = "torchvision",
        max_pixels: int = Decoder.max_pixels,
    ) -> None:
        self.tasks = tasks or [TEXT_TO_IMAGE]

        def datasets(place: str, features: str) -> dict[str, DatasetConfig]:
            source = ShardFolder(place)
            options = text_only_ratio, conversation_key, max_turns, features
            return {task: DatasetConfig(source, task, None, *options) for task in self.tasks}

        super().__init__(
            datasets(shards, features),
            datasets(val_shards, NONE if features == NONE else AUTO) if val_shards else None,
            batch_size,
            num_val_samples,
            num_workers,
            seed,
            length_bucket_batches,
            max_bad_fraction,
            image_backend,
            max_pixels,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trained, validated = (
            {path.resolve() for each in datasets.values() for path in each.source.paths}
            for datasets in (self.datasets, self.val_datasets)
        )
        if validated < trained:  # a sub-folder; all the same ones are meant
            raise UserError(
                f"the shards of validation ({len(validated)}, {min(validated)} for one) are among "
                "those of training, whose sub-folders are read too; give each a folder of its own "
                "(--data.shards, --data.val_shards)."
            )
