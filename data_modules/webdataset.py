"""ShardDataModule: WebDataset shards as training data."""

from __future__ import annotations

from triptych.data_modules.batching.caption_dropout import NO_DROPOUT, CaptionDropout
from triptych.data_modules.dataset_config import DatasetConfig
from triptych.data_modules.decode import Decoder, ImageBackend
from triptych.data_modules.features.cache import AUTO, NONE
from triptych.data_modules.mixed import MixedDataModule
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.utils.errors import UserError


class ShardDataModule(MixedDataModule):
    """Captioned images (and conversations about them) from local WebDataset shards.

    Args:
        shards: folder, file or pattern of training shards, see `find_shards`.
        val_shards: validation shards; null validates on the first training samples.
        tasks: tasks of the samples: "text_to_image", "image_to_image" (reconstruction, or
            editing), "image_to_text", "text_to_text", "text_to_reward" (captions alone) or
            "text_to_preference" (pairs). One batch holds both tasks of an objective; tasks of both
            objectives are joint training, with one batch of each in every step.
        batch_size, shared_batch, num_val_samples, num_workers, seed, steps_per_batch,
            length_bucket_batches, max_bad_fraction, image_backend, max_pixels: settings of
            `MixedDataModule`.
        text_only_ratio, conversation_key, max_turns, caption_dropout: settings of `DatasetConfig`;
            no words are left out in validation.
        features: features of the training shards, see `DatasetConfig`; those of validation are
            "auto", unless "none".
    """

    def __init__(
        self,
        shards: str,
        val_shards: str | None = None,
        *,
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
        steps_per_batch: int = 1,
        length_bucket_batches: int = 64,
        max_bad_fraction: float = 0.01,
        features: str = AUTO,
        image_backend: ImageBackend = "torchvision",
        max_pixels: int = Decoder.max_pixels,
    ) -> None:
        self.tasks = tasks or [TEXT_TO_IMAGE]

        def datasets(
            shards: str, features: str, caption_dropout: CaptionDropout = NO_DROPOUT
        ) -> dict[str, DatasetConfig]:
            source = ShardFolder(shards)
            return {
                task: DatasetConfig(
                    source,
                    task,
                    text_only_ratio=text_only_ratio,
                    conversation_key=conversation_key,
                    max_turns=max_turns,
                    caption_dropout=caption_dropout,
                    features=features,
                )
                for task in self.tasks
            }

        super().__init__(
            datasets(shards, features, caption_dropout),
            datasets(val_shards, NONE if features == NONE else AUTO) if val_shards else None,
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            num_workers=num_workers,
            seed=seed,
            steps_per_batch=steps_per_batch,
            length_bucket_batches=length_bucket_batches,
            max_bad_fraction=max_bad_fraction,
            image_backend=image_backend,
            max_pixels=max_pixels,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trained, validated = (
            {path.resolve() for each in datasets.values() for path in each.source.paths}
            for datasets in (self.datasets, self.val_datasets)
        )
        if validated < trained:  # a sub-folder; equal sets are intended
            raise UserError(
                f"the shards of validation ({len(validated)}, {min(validated)} for one) are among "
                "those of training, whose sub-folders are read too; give each a folder of its own "
                "(--data.shards, --data.val_shards)."
            )
