"""Global batch schedule: mixture, epoch order and length buckets combined."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from triptych.data_modules.sampling.epoch_shuffle import EpochShuffle
from triptych.data_modules.sampling.epochs import DistinctEpochs
from triptych.data_modules.sampling.length_buckets import LengthBuckets
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sources.base import DataSource
from triptych.utils.rng import mix

ORDER_VERSION = 2  # of how positions become samples: runs of another one see some samples again


class GlobalBatchSampler:
    """Stateless map from the step of a run to its samples.

    A sample of the run has a *position*, its global sample number, which is the source of every
    draw about it. Batch k holds `global_batch` positions, without buckets those from
    k * global_batch on. So a run resumed elsewhere, on more ranks or fewer workers, continues
    with the samples that the other would have read next.

    Every sample of a data set comes once before any comes again, whatever the buckets; and no batch
    holds a sample twice, unless it takes more of a data set than that has. A window of buckets
    therefore stays within one epoch of each data set: a small one that comes often makes it short.

    Args:
        sources: the data sets, open.
        mixture: their shares, in the same order.
        global_batch: samples of a step on all ranks together.
        seed: of the order.
        length_bucket_batches: global batches among which samples are sorted by length; 1 is none.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        mixture: Mixture,
        global_batch: int,
        seed: int = 0,
        length_bucket_batches: int = 1,
    ) -> None:
        self.sources, self.mixture, self.global_batch = sources, mixture, global_batch
        self.lengths = [int(np.sum(source.shard_sizes)) for source in sources]
        self.orders = [self._epochs(place, seed) for place in range(len(sources))]
        known = all(source.caption_lengths(np.zeros(1, np.int64)) is not None for source in sources)
        bucketed = known and length_bucket_batches > 1
        self.buckets = None
        if bucketed:
            self.buckets = LengthBuckets(
                self.sizes, global_batch, seed, length_bucket_batches, self.epoch_bounds
            )
        self._made_of = (
            ORDER_VERSION,
            seed,
            global_batch,
            length_bucket_batches if bucketed else 1,
        )

    def batch(self, step: int) -> np.ndarray:
        """Positions of the samples of global batch `step`, int64 [global_batch]."""
        if self.buckets is not None:
            return self.buckets(step)
        return np.arange(step * self.global_batch, (step + 1) * self.global_batch)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each sample at `positions` [n], and its number there; int64 [n] each."""
        chosen, before = self.mixture.locate(positions)
        numbers = np.empty(len(chosen), np.int64)
        for place in np.unique(chosen).tolist():
            order, here = self.orders[place], np.flatnonzero(chosen == place)
            epochs, places = np.divmod(before[here], self.lengths[place])
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                numbers[here[now]] = order.numbers(epoch, places[now])
        return chosen, numbers

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Caption lengths of the samples at `positions` [n], int64 [n]."""
        chosen, numbers = self.locate(positions)
        sizes = np.empty(len(chosen), np.int64)
        for place in np.unique(chosen).tolist():
            here = chosen == place
            sizes[here] = self.sources[place].caption_lengths(numbers[here])
        return sizes

    def epochs(self, step: int) -> dict[str, float]:
        """Number of epochs of each data set, by name, completed before `step`."""
        given = self.mixture.given(step * self.global_batch).tolist()
        return {
            name: number / length
            for name, number, length in zip(self.mixture.names, given, self.lengths, strict=True)
        }

    def epoch_bounds(self, step: int) -> tuple[int, int]:
        """The batches [start, stop) around `step` in which no data set begins an epoch.

        The batch in which one does, if it is not at the batch's start, is by itself.
        """
        start, stop = 0, np.iinfo(np.int64).max
        given = self.mixture.given(step * self.global_batch)
        for place in np.flatnonzero(self.mixture.parts).tolist():
            epoch = int(given[place]) // self.lengths[place]
            begins, ends = self._begins(place, epoch), self._begins(place, epoch + 1)
            start = max(start, -(-begins // self.global_batch))
            stop = min(stop, ends // self.global_batch)
        return (start, stop) if start <= step < stop else (step, step + 1)

    def oversampled(self) -> dict[str, tuple[int, int]]:
        """Data sets, by name, of fewer samples than a batch takes of them: (samples, taken)."""
        return {
            name: (self.lengths[place], self._most(place))
            for place, name in enumerate(self.mixture.names)
            if self._most(place) > self.lengths[place]
        }

    def _epochs(self, place: int, seed: int) -> DistinctEpochs:
        order = EpochShuffle(self.sources[place].shard_sizes, mix(seed, place))
        return DistinctEpochs(order, partial(self._border, place), self._most(place))

    def _border(self, place: int, epoch: int) -> tuple[int, int]:
        """Samples before and after the start of an epoch of a data set, in the batch of it."""
        first = epoch * self.lengths[place]
        batch = self._begins(place, epoch) // self.global_batch
        start, stop = (
            int(self.mixture.given(n * self.global_batch)[place]) for n in (batch, batch + 1)
        )
        return first - start, stop - first

    def _begins(self, place: int, epoch: int) -> int:
        """The position of the first sample of an epoch of a data set."""
        return self.mixture.position(place, epoch * self.lengths[place])

    def _most(self, place: int) -> int:
        """Samples of a data set in a batch, at most."""
        return self.mixture.most(place, self.global_batch)

    def digest(self) -> int:
        """A number that changes when samples would come in another order."""
        found = zlib.crc32(repr(self._made_of).encode() + self.mixture.parts.tobytes())
        for source in self.sources:
            found = zlib.crc32(np.asarray(source.shard_sizes, np.int64).tobytes(), found)
        return found
