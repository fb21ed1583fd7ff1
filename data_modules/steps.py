"""What a DataLoader reads: training batches by step, evaluation batches in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from triptych.contracts import Batch
from triptych.signals import ignore_in_worker

from .batches import BatchBuilder
from .schedule import Schedule

# Validation draws must not depend on the step: their sample numbers start here.
VALIDATION_SAMPLES = 1 << 40


class StepDataset(Dataset):
    """Item k is this rank's k-th batch of the run: a pure function of (schedule, k, rank).

    The ranks, and the batches whose gradients are accumulated, take equal consecutive parts of a
    global batch, so that the same pictures meet the same noise in the same step however they are
    spread.

    Args:
        build: makes batches.
        schedule: of global batches, one an optimizer step.
        rank, world: of this process.
        accumulate: batches of a rank in one global batch.
    """

    def __init__(
        self,
        build: BatchBuilder,
        schedule: Schedule,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.build, self.schedule = build, schedule
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.size = schedule.global_batch // (world * accumulate)

    def __getitem__(self, number: int) -> Batch:
        step, turn = divmod(number, self.accumulate)
        first = (turn * self.world + self.rank) * self.size
        positions = self.schedule.batch(step)[first : first + self.size]
        places = (found.tolist() for found in self.schedule.locate(positions))
        batch = self.build(number, list(zip(*places, strict=True)), positions.tolist())
        batch.epochs = self.schedule.epochs(step + 1)
        return batch


class EvaluationDataset(Dataset):
    """The first samples of every source in order, about `limit` in all, in batches.

    Every source gives equally many, and a small one all that it has; the last batch is smaller.
    Every rank takes all of them, so that no sample counts twice, however many ranks there are.
    """

    def __init__(self, build: BatchBuilder, batch_size: int, limit: int) -> None:
        self.build, self.batch_size = build, batch_size
        share = -(-limit // len(build.readings))
        self.places = [
            (place, number)
            for place, reading in enumerate(build.readings)
            for number in range(min(share, len(reading.source)))
        ]

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        places: Sequence[tuple[int, int]] = self.places[first : first + self.batch_size]
        samples = range(VALIDATION_SAMPLES + first, VALIDATION_SAMPLES + first + len(places))
        return self.build(index, places, samples)


class Steps(Sampler[int]):
    """Step numbers from `start` to `stop`. Its length is that of the whole run, as Lightning
    counts on when it resumes in the middle."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


class StepLoader(DataLoader):
    """A loader of whole batches that Lightning knows to be resumable.

    There is no state to keep: a resumed run makes a new loader that starts at its global step.
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
