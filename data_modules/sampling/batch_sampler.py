"""Maps a global step to its samples: mixing, epoch shuffling and length bucketing."""

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

ORDER_VERSION = 2  # of the map from positions to samples; a run of another version repeats some


class GlobalBatchSampler:
    """Stateless map from the step of a run to its samples.

    A sample of the run has a *position*, its global sample number, which seeds every draw about it.
    Batch k holds `global_batch` positions, without buckets those from k * global_batch on. So a run
    resumed elsewhere, on more ranks or fewer workers, continues with the next samples.

    Every sample of a data set comes once before any repeats, whatever the buckets; and no batch
    holds a sample twice, unless it takes more samples of a data set than there are. A window of
    buckets therefore stays within one epoch of each data set, and is short with a small data set of
    large weight.

    Args:
        sources: open data sets.
        mixture: weights of the data sets, in the same order.
        global_batch: number of samples of a step on all ranks together.
        seed: random seed of the order.
        length_bucket_batches: number of global batches among which samples are sorted by length;
            1 does not sort.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        mixture: Mixture,
        global_batch: int,
        *,
        seed: int = 0,
        length_bucket_batches: int = 1,
    ) -> None:
        self.sources, self.mixture, self.global_batch = sources, mixture, global_batch
        self.lengths = [int(np.sum(source.shard_sizes)) for source in sources]
        self.orders = [self._make_epochs(dataset, seed) for dataset in range(len(sources))]
        first = np.zeros(1, np.int64)
        has_lengths = all(source.caption_lengths(first) is not None for source in sources)
        bucketed = has_lengths and length_bucket_batches > 1
        self.buckets = None
        if bucketed:
            self.buckets = LengthBuckets(
                self.caption_lengths,
                global_batch,
                seed=seed,
                batches=length_bucket_batches,
                bounds=self.epoch_bounds,
            )
        self._settings = (
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
        """Data set of each sample at `positions` [n], and its number in it; int64 [n] each."""
        chosen, before = self.mixture.locate(positions)
        numbers = np.empty(len(chosen), np.int64)
        for dataset in np.unique(chosen).tolist():
            order, members = self.orders[dataset], np.flatnonzero(chosen == dataset)
            epochs, places = np.divmod(before[members], self.lengths[dataset])
            for epoch in np.unique(epochs).tolist():
                in_epoch = epochs == epoch
                numbers[members[in_epoch]] = order.numbers(epoch, places[in_epoch])
        return chosen, numbers

    def caption_lengths(self, positions: np.ndarray) -> np.ndarray:
        """Caption lengths of the samples at `positions` [n], int64 [n]."""
        chosen, numbers = self.locate(positions)
        lengths = np.empty(len(chosen), np.int64)
        for dataset in np.unique(chosen).tolist():
            members = chosen == dataset
            lengths[members] = self.sources[dataset].caption_lengths(numbers[members])
        return lengths

    def epochs(self, step: int) -> dict[str, float]:
        """Number of epochs of each data set, by name, completed before `step`."""
        counts = self.mixture.counts_before(step * self.global_batch).tolist()
        return {
            name: count / length
            for name, count, length in zip(self.mixture.names, counts, self.lengths, strict=True)
        }

    def epoch_bounds(self, step: int) -> tuple[int, int]:
        """The batches [start, stop) around `step` in which no data set begins an epoch.

        A batch in which an epoch begins, other than at its first sample, is returned alone.
        """
        start, stop = 0, np.iinfo(np.int64).max
        counts = self.mixture.counts_before(step * self.global_batch)
        for dataset in np.flatnonzero(self.mixture.quotas).tolist():
            epoch = int(counts[dataset]) // self.lengths[dataset]
            first = self._epoch_start(dataset, epoch)
            last = self._epoch_start(dataset, epoch + 1)
            start = max(start, -(-first // self.global_batch))
            stop = min(stop, last // self.global_batch)
        return (start, stop) if start <= step < stop else (step, step + 1)

    def oversampled(self) -> dict[str, tuple[int, int]]:
        """Data sets with fewer samples than a batch takes: name -> (samples, taken by a batch)."""
        return {
            name: (self.lengths[dataset], self._max_per_batch(dataset))
            for dataset, name in enumerate(self.mixture.names)
            if self._max_per_batch(dataset) > self.lengths[dataset]
        }

    def _make_epochs(self, dataset: int, seed: int) -> DistinctEpochs:
        order = EpochShuffle(self.sources[dataset].shard_sizes, mix(seed, dataset))
        boundary = partial(self._epoch_boundary, dataset)
        return DistinctEpochs(order, boundary, self._max_per_batch(dataset))

    def _epoch_boundary(self, dataset: int, epoch: int) -> tuple[int, int]:
        """Numbers of samples before and after the start of an epoch, in the batch of the start."""
        first = epoch * self.lengths[dataset]
        batch = self._epoch_start(dataset, epoch) // self.global_batch
        start, stop = (
            int(self.mixture.counts_before(n * self.global_batch)[dataset])
            for n in (batch, batch + 1)
        )
        return first - start, stop - first

    def _epoch_start(self, dataset: int, epoch: int) -> int:
        """Position of the first sample of an epoch of a data set."""
        return self.mixture.position(dataset, epoch * self.lengths[dataset])

    def _max_per_batch(self, dataset: int) -> int:
        """Maximum number of samples of a data set in a batch."""
        return self.mixture.max_count(dataset, self.global_batch)

    def digest(self) -> int:
        """Checksum of everything that determines the order of samples."""
        crc = zlib.crc32(repr(self._settings).encode() + self.mixture.quotas.tobytes())
        for source in self.sources:
            crc = zlib.crc32(np.asarray(source.shard_sizes, np.int64).tobytes(), crc)
        return crc
