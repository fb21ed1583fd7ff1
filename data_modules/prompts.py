"""PromptDataModule: files of prompts whose images a reward scores."""

from __future__ import annotations

from triptych.data_modules.dataset_config import DatasetConfig
from triptych.data_modules.mixed import MixedDataModule
from triptych.data_modules.sources.prompts import PromptFile
from triptych.interfaces import TEXT_TO_REWARD


class PromptDataModule(MixedDataModule):
    """Files of prompts, for learning from rewards.

    Args:
        prompts: file of training prompts, see `PromptFile`.
        val_prompts: file of held-out prompts; null validates on the first training prompts.
        batch_size, shared_batch, num_val_samples, num_workers, seed, steps_per_batch: settings of
            `MixedDataModule`.
    """

    def __init__(
        self,
        prompts: str,
        val_prompts: str | None = None,
        *,
        batch_size: int = 16,
        shared_batch: bool = False,
        num_val_samples: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_batch: int = 4,
    ) -> None:
        def datasets(path: str) -> dict[str, DatasetConfig]:
            return {"prompts": DatasetConfig(PromptFile(path), TEXT_TO_REWARD)}

        super().__init__(
            datasets(prompts),
            datasets(val_prompts) if val_prompts else None,
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            num_workers=num_workers,
            seed=seed,
            steps_per_batch=steps_per_batch,
            length_bucket_batches=1,
        )
