"""Training batches from shards in random order, epoch after epoch without end.

Shards are dealt to the loader workers of all ranks in a new order every epoch; where there are
fewer shards than workers, each shard is split into shares. Samples are shuffled in a buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import count, groupby
from operator import itemgetter
from random import Random
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.streaming.secure_webdataset import shuffle
from triptych.data_modules.streaming.tar_stream import (
    EncodedSample,
    InMemorySamples,
    MemberLimits,
    read_samples,
)
from triptych.data_modules.streaming.urls import READ_ERRORS, open_url
from triptych.interfaces import Batch, Preprocessing
from triptych.utils.errors import UserError
from triptych.utils.rng import mix

MAX_EMPTY = 10  # consecutive shards without a sample, then the run ends


class Assignment(NamedTuple):
    """A share of a shard that one worker reads."""

    epoch: int
    url: str
    share: int


@dataclass
class ShardStream(IterableDataset):
    """Training batches from shards in random order.

    Worker w of W makes the batches start+w, start+w+W, ..., which is the order in which a
    DataLoader takes them, so that every batch has the number of its step.

    No batch of a rank holds a sample twice if the worker's share of an epoch is at least a batch.

    Args:
        urls: addresses of the shards.
        task: task of the samples, see `TaskDataset`.
        processor: the model's tokenizer, limits and image sizes.
        batch_size: number of samples per batch of this rank.
        start: number of batches that the run has already taken.
        stop: number of batches of the whole run.
        rank: rank of this process.
        world: number of ranks.
        seed: random seed of the draw, together with all of the above.
        buffer: number of samples, still encoded, in the shuffle buffer.
        limits: size limits of members.
    """

    urls: list[str]
    task: str
    processor: Preprocessing
    _: KW_ONLY
    batch_size: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    buffer: int = 256
    limits: MemberLimits = field(default_factory=MemberLimits)

    def __len__(self) -> int:
        return self.stop  # of the whole run, as Lightning counts on when it resumes

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader, readers = self.rank * workers + worker, self.world * workers
        problems: list[BadSample] = []
        batches = distinct_batches(self._samples(reader, readers, problems), self.batch_size)
        for step in range(self.start + worker, self.stop, workers):
            batch = self._batch(step, next(batches))
            batch.dropped_samples += [(bad.key, bad.reason) for bad in problems]
            problems.clear()
            yield batch

    def _batch(self, step: int, samples: list[EncodedSample]) -> Batch:
        source = InMemorySamples("the stream", samples, self.limits)
        collate = Collator([TaskDataset(source, self.task)], self.processor, self.seed)
        first = (step * self.world + self.rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        return collate(step, [(0, place) for place in range(len(samples))], numbers)

    def _samples(
        self, reader: int, readers: int, problems: list[BadSample]
    ) -> Iterator[tuple[str, EncodedSample]]:
        """Samples with their shards, in random order; bad samples go to `problems`.

        The buffer is emptied at the end of an epoch, before the next one begins.
        """
        shares = -(-readers // len(self.urls))
        empty = deque(maxlen=MAX_EMPTY)
        for epoch, assignments in groupby(
            self._assignments(reader, readers, shares), itemgetter(0)
        ):
            rng = Random(mix(self.seed, self.start, epoch, readers, reader))
            shuffled = shuffle(self.buffer, initial=self.buffer, rng=rng)
            yield from shuffled(self._read(assignments, shares, problems, empty))

    def _assignments(self, reader: int, readers: int, shares: int) -> Iterator[Assignment]:
        """Assignments of one reader: all shares of shards are dealt in turn, in random order."""
        total = len(self.urls) * shares
        for epoch in count():
            order = np.random.default_rng(mix(self.seed, self.start, epoch)).permutation(total)
            for number in order[(reader - epoch * total) % readers :: readers].tolist():
                yield Assignment(epoch, self.urls[number // shares], number % shares)

    def _read(
        self,
        assignments: Iterator[Assignment],
        shares: int,
        problems: list[BadSample],
        empty: deque[str],
    ) -> Iterator[tuple[str, EncodedSample]]:
        for _, url, share in assignments:
            empty.append(url)
            for number, sample in enumerate(read_shard_at(url, self.limits)):
                good = not isinstance(sample, BadSample)
                if good:
                    empty.clear()
                if number % shares != share:
                    continue
                if good:
                    yield url, sample
                else:
                    problems.append(sample)
            if len(empty) == MAX_EMPTY:
                raise UserError(
                    f"the last {MAX_EMPTY} shards of the stream gave no sample, "
                    f"{url} for one ({problems[-1] if problems else 'empty'})."
                )


def distinct_batches(
    samples: Iterator[tuple[str, EncodedSample]], size: int
) -> Iterator[list[EncodedSample]]:
    """Group samples into batches without duplicates, compared by shard and key.

    A duplicate within a batch is deferred to the next; a whole batch of duplicates means that there
    are fewer samples than a batch takes, and fills it.
    """
    deferred: deque[tuple[str, EncodedSample]] = deque()
    while True:
        batch: dict[tuple[str, str], EncodedSample] = {}
        duplicates: list[tuple[str, EncodedSample]] = []
        while len(batch) < size and len(duplicates) < size:
            url, sample = deferred.popleft() if deferred else next(samples)
            if (url, sample.key) in batch:
                duplicates.append((url, sample))
            else:
                batch[url, sample.key] = sample
        missing = size - len(batch)
        yield [*batch.values(), *(sample for _, sample in duplicates[:missing])]
        deferred.extendleft(reversed(duplicates[missing:]))


def read_shard_at(url: str, limits: MemberLimits) -> Iterator[EncodedSample | BadSample]:
    """The samples of one shard; a shard that cannot be opened is one `BadSample`."""
    try:
        file = open_url(url)
    except READ_ERRORS as error:
        yield BadSample(url, "shard cannot be opened", str(error))
        return
    with file:
        yield from read_samples(file, limits)
