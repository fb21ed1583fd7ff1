"""Common part of the DataModules: connection to the model, validation loaders, bad samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from triptych.data_modules.batching.bad_samples import BadSampleCounter
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.previews import Need, Preview, previews
from triptych.data_modules.sampling.step_dataset import (
    EvaluationDataset,
    StepLoader,
    require_step_based_run,
    step_loader,
)
from triptych.interfaces import BatchContents, Preprocessing, batches_in
from triptych.utils.errors import UserError


class BaseDataModule(LightningDataModule, ABC):
    """A DataModule whose batches are counted in steps and validated in a fixed order.

    A subclass opens its data in `open_datasets` and returns an `AccumulationLoader` from
    `train_dataloader`.

    Args:
        batch_size: number of samples per batch and rank.
        shared_batch: `batch_size` is that of all ranks together, which take equal shares of it, so
            that a run learns the same on any number of them.
        num_val_samples: number of validation samples of each objective.
        num_workers: number of loader processes.
        seed: random seed of the order of samples.
        max_bad_fraction: largest fraction of unusable samples before the run ends.
        decoder: decoder of the images of training and validation.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        shared_batch: bool,
        num_val_samples: int,
        num_workers: int,
        seed: int,
        max_bad_fraction: float,
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_val_samples = batch_size, num_val_samples
        self.shared_batch = shared_batch
        self.num_workers, self.seed = num_workers, seed
        self.max_bad_fraction = max_bad_fraction
        self.decoder = decoder
        self.processor: Preprocessing | None = None
        self.val_task_datasets: dict[str, list[TaskDataset]] = {}
        """Objective -> its validation data sets; empty before `setup`."""
        self.bad_samples = BadSampleCounter(max_bad_fraction)

    def connect(self, processor: Preprocessing) -> None:
        """Take the model's tokenizer and image sizes; `setup` calls it under a Trainer."""
        self.processor = processor

    @abstractmethod
    def open_datasets(self) -> None:
        """Open and check all data for `self.processor`; set `val_task_datasets`. Called once."""

    @property
    def rank_batch_size(self) -> int:
        """Number of samples of a training batch of this rank.

        Raises:
            UserError: the ranks cannot take equal shares of a shared batch.
        """
        ranks = self.trainer.world_size if self.shared_batch and self.trainer is not None else 1
        if self.batch_size % ranks:
            raise UserError(
                f"the {ranks} ranks share batches of {self.batch_size} samples (data.shared_batch) "
                f"and cannot take equal parts; make data.batch_size a multiple of {ranks}."
            )
        return self.batch_size // ranks

    def batch_contents(self) -> BatchContents:
        """Return the contents of all batches; unknown unless a subclass knows them.

        Before `setup` features are unknown.
        """
        return BatchContents()

    def preview(self, objective: str, number: int, *needs: Need) -> list[Preview]:
        """Return the first validation samples of an objective that have `needs`, see `previews`."""
        datasets = self.val_task_datasets.get(objective, [])
        return previews(datasets, self.processor, number, set(needs), self.decoder)

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuse settings of a fit that this data cannot follow; see `require_step_based_run`."""
        require_step_based_run(trainer)

    # Lightning hooks ----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.processor is None:
            self.connect(self.trainer.lightning_module.preprocessing())
        if self.val_task_datasets:
            return
        if hint := self.decoder.hint:
            rank_zero_info(hint)
        self.open_datasets()

    def val_dataloader(self) -> StepLoader | CombinedLoader:
        return self._evaluation_loader(self.processor)

    def test_dataloader(self) -> StepLoader | CombinedLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> StepLoader | CombinedLoader:
        """Load the validation captions in the prompt template of inference."""
        inference = replace(self.processor, training_template=self.processor.template)
        return self._evaluation_loader(inference)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        for each in batches_in(batch):
            self.bad_samples.count(each)
        return batch

    def teardown(self, stage: str) -> None:
        self.bad_samples.report()

    # Others -------------------------------------------------------------------------------------

    def _evaluation_loader(self, processor: Preprocessing) -> StepLoader | CombinedLoader:
        def loader(datasets: list[TaskDataset]) -> StepLoader:
            collate = Collator(
                datasets, processor, self.seed, decoder=self.decoder, replace_bad=False
            )
            dataset = EvaluationDataset(collate, self.batch_size, self.num_val_samples)
            return step_loader(dataset, None, self.num_workers)

        loaders = unwrap_single(
            {objective: loader(datasets) for objective, datasets in self.val_task_datasets.items()}
        )
        # each objective to its end: which samples are seen must not depend on the size of batches
        return CombinedLoader(loaders, "max_size") if isinstance(loaders, dict) else loaders


def unwrap_single(loaders: dict[str, StepLoader]) -> StepLoader | dict[str, StepLoader]:
    """Return the only loader, whose batches are not in a dict, or the loaders by objective."""
    return next(iter(loaders.values())) if len(loaders) == 1 else loaders
