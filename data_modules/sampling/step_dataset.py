"""Datasets of a DataLoader: training batches by step, evaluation batches in order."""

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

# Validation draws must not depend on the step: their sample numbers start here.
VALIDATION_SAMPLES = 1 << 40


class StepDataset(Dataset):
    """Item k is this rank's k-th batch of the run: a pure function of (schedule, k, rank).

    The ranks, and the batches whose gradients are accumulated, take equal consecutive parts of a
    global batch, so that the same images meet the same noise in the same step however they are
    spread.

    Args:
        collate: batch builder.
        schedule: schedule of global batches, one per optimizer step.
        rank, world: rank of this process and number of ranks.
        accumulate: number of batches of a rank in one global batch.
    """

    def __init__(
        self,
        collate: Collator,
        schedule: GlobalBatchSampler,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.collate, self.schedule = collate, schedule
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.size = schedule.global_batch // (world * accumulate)

    def __getitem__(self, number: int) -> Batch:
        step, turn = divmod(number, self.accumulate)
        first = (turn * self.world + self.rank) * self.size
        positions = self.schedule.batch(step)[first : first + self.size]
        places = (found.tolist() for found in self.schedule.locate(positions))
        batch = self.collate(number, list(zip(*places, strict=True)), positions.tolist())
        batch.epochs = self.schedule.epochs(step + 1)
        return batch


class EvaluationDataset(Dataset):
    """The first samples of every source in order, about `limit` in all, in batches.

    Every source gives equally many, and a small one all that it has; the last batch is smaller.
    Every rank takes all of them, so that no sample counts twice, however many ranks there are.
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
    """Numbers of batches from where a run stands to `stop`, its own length included.

    Its length is that of the whole epoch, as Lightning counts on when it resumes in the middle.
    Sequential by its class too, which is what Lightning wants of batches to overfit.

    Args:
        position: function that returns the finished batches of an epoch; called when one begins.
        stop: batches in an epoch.
    """

    def __init__(self, position: Callable[[], int], stop: int) -> None:
        self.position, self.stop = position, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.position(), self.stop))

    def __len__(self) -> int:
        return self.stop


def make_step_sampler(trainer: Trainer) -> StepSampler:
    """The batches that a rank trains on, of one epoch after the other as Lightning has them.

    An epoch is the whole run; where trainer.limit_train_batches or overfit_batches name a number,
    it is the first so many batches, which then come again and again.
    """
    require_step_based_run(trainer)
    accumulate, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    if not isinstance(limit, int):  # 1.0: all of them
        limit = trainer.max_steps * accumulate
    batches = min(limit, trainer.max_steps * accumulate)
    steps = -(-batches // accumulate)  # Lightning makes a step of what is left at the end

    def position() -> int:
        return trainer.global_step % steps * accumulate

    return StepSampler(position, batches)


def require_step_based_run(trainer: Trainer) -> None:
    """Refuse the settings of a fit that count in epochs of the data: a run is counted in steps.

    Raises:
        UserError: one of them is set, or the run's length is not.
    """
    if trainer.max_steps < 1:
        raise UserError("set --trainer.max_steps to 1 or more: a run's length is counted in steps.")
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError(
            "set --trainer.use_distributed_sampler=false: the data splits its batches over the "
            "ranks itself."
        )
    if trainer.fast_dev_run:
        return  # it sets limits of its own
    for name, all_of_it in (("overfit_batches", 0.0), ("limit_train_batches", 1.0)):
        value = getattr(trainer, name)
        if isinstance(value, float) and value not in (0.0, all_of_it):
            raise UserError(
                f"--trainer.{name}={value} is a share of an epoch, but a run is counted in steps; "
                "give a whole number of batches."
            )
    if isinstance(trainer.limit_train_batches, int):
        return  # so many batches are an epoch
    for name, most in (("max_epochs", 0), ("min_epochs", 1)):  # Lightning sets the latter to 1
        if (getattr(trainer, name) or 0) > most:
            raise UserError(
                f"--trainer.{name} counts epochs, but a run is counted in steps; leave it out and "
                "set --trainer.max_steps."
            )


class StepLoader(DataLoader):
    """A loader of whole batches that Lightning knows to be resumable.

    There is no state to save: a resumed run makes a new loader that starts at its global step.
    """

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def step_loader(dataset: Dataset, sampler: Sampler | None, workers: int) -> StepLoader:
    """A loader of the batches that `dataset` makes; to predict, Lightning must be able to make it
    again from the arguments of a plain DataLoader."""
    return StepLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=ignore_in_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),  # else a copy to the device waits for it
    )
