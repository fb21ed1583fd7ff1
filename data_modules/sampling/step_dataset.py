"""Datasets and sampler of a DataLoader: training batches by step, evaluation batches in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from lightning import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.interfaces import Batch
from triptych.utils.errors import UserError
from triptych.utils.signals import ignore_in_worker

# First sample number of validation, whose draws must not depend on the step.
VALIDATION_SAMPLES = 1 << 40


class StepDataset(Dataset):
    """Item k is the k-th batch of this rank in the run: a pure function of (sampler, k, rank).

    The ranks, and the micro-batches whose gradients are accumulated, take equal consecutive shares
    of a global batch, so that the same images get the same noise in the same step on any number of
    ranks.

    Args:
        collate: collator of the samples.
        sampler: sampler of the global batches, one per optimizer step.
        rank: rank of this process.
        world: number of ranks.
        accumulate: number of micro-batches of a rank in one global batch.
        steps_per_batch: number of consecutive steps that take the same global batch.
    """

    def __init__(
        self,
        collate: Collator,
        sampler: GlobalBatchSampler,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        steps_per_batch: int = 1,
    ) -> None:
        self.collate, self.sampler = collate, sampler
        self.steps_per_batch = steps_per_batch
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.size = sampler.global_batch // (world * accumulate)

    def __getitem__(self, number: int) -> Batch:
        step, micro_batch = divmod(number, self.accumulate)
        first = (micro_batch * self.world + self.rank) * self.size
        taken, repetition = divmod(step, self.steps_per_batch)
        positions = self.sampler.batch(taken)[first : first + self.size]
        datasets, numbers = self.sampler.locate(positions)
        places = list(zip(datasets.tolist(), numbers.tolist(), strict=True))
        batch = self.collate(number, places, positions.tolist())
        batch.epochs, batch.repetition = self.sampler.epochs(taken + 1), repetition
        return batch


class EvaluationDataset(Dataset):
    """Batches of the first samples of every source in order, about `limit` samples in all.

    Every source contributes equally many samples, or all if it is small; the last batch may be
    smaller. Every rank takes all batches, so that no sample counts twice on any number of ranks.

    Args:
        collate: collator of the samples.
        batch_size: number of samples of a batch.
        limit: approximate number of samples.
    """

    def __init__(self, collate: Collator, batch_size: int, limit: int) -> None:
        self.collate, self.batch_size = collate, batch_size
        share = -(-limit // len(collate.datasets))
        self.places = [
            (place, number)
            for place, dataset in enumerate(collate.datasets)
            for number in range(min(share, len(dataset.source)))
        ]

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        places: Sequence[tuple[int, int]] = self.places[first : first + self.batch_size]
        samples = range(VALIDATION_SAMPLES + first, VALIDATION_SAMPLES + first + len(places))
        return self.collate(index, places, samples)


class StepSampler(SequentialSampler):
    """Numbers of the remaining batches of an epoch.

    Its length is that of the whole epoch, as Lightning expects when it resumes inside of one. It is
    a SequentialSampler because Lightning requires one for overfit_batches.

    Args:
        position: function that returns the number of finished batches of an epoch; called when an
            epoch begins.
        stop: number of batches in an epoch.
    """

    def __init__(self, position: Callable[[], int], stop: int) -> None:
        self.position, self.stop = position, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.position(), self.stop))

    def __len__(self) -> int:
        return self.stop


def make_step_sampler(trainer: Trainer) -> StepSampler:
    """Sampler of the batches that a rank trains on in each epoch of Lightning.

    An epoch is the whole run, unless trainer.limit_train_batches or overfit_batches is a number:
    then it is the first so many batches, which are repeated.
    """
    require_step_based_run(trainer)
    accumulate, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    if not isinstance(limit, int):  # 1.0: all batches
        limit = trainer.max_steps * accumulate
    batches = min(limit, trainer.max_steps * accumulate)
    steps = -(-batches // accumulate)  # Lightning makes a step of the remaining batches, too

    def position() -> int:
        return trainer.global_step % steps * accumulate

    return StepSampler(position, batches)


def require_step_based_run(trainer: Trainer) -> None:
    """Refuse settings of a fit that count epochs of the data: a run is counted in steps.

    Raises:
        UserError: such a setting is set, or trainer.max_steps is not.
    """
    if trainer.max_steps < 1:
        raise UserError("set --trainer.max_steps to 1 or more: a run's length is counted in steps.")
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError(
            "set --trainer.use_distributed_sampler=false: the data splits its batches over the "
            "ranks itself."
        )
    if trainer.fast_dev_run:
        return  # it sets its own limits
    for name, default in (("overfit_batches", 0.0), ("limit_train_batches", 1.0)):
        value = getattr(trainer, name)
        if isinstance(value, float) and value not in (0.0, default):
            raise UserError(
                f"--trainer.{name}={value} is a share of an epoch, but a run is counted in steps; "
                "give a whole number of batches."
            )
    if isinstance(trainer.limit_train_batches, int):
        return  # an epoch is that many batches
    for name, default in (("max_epochs", 0), ("min_epochs", 1)):
        if (getattr(trainer, name) or 0) > default:
            raise UserError(
                f"--trainer.{name} counts epochs, but a run is counted in steps; leave it out and "
                "set --trainer.max_steps."
            )


class StepLoader(DataLoader):
    """DataLoader of whole batches that Lightning accepts as resumable.

    It has no state to save: a resumed run makes a new loader that starts at its global step.
    """

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def step_loader(dataset: Dataset, sampler: Sampler | None, workers: int) -> StepLoader:
    """Make a loader of the batches of `dataset`.

    For predict, Lightning makes it again from the arguments of a plain DataLoader.
    """
    return StepLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=ignore_in_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),  # makes the copy to the device asynchronous
    )
