"""Consecutive epochs of a data set, without duplicates in a batch that spans two epochs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triptych.data_modules.sampling.epoch_shuffle import EpochShuffle, lru_cached

CACHED_EPOCHS = 256  # of a small data set


class DistinctEpochs:
    """Consecutive epochs of one data set, in batches that need not divide them.

    A batch that spans two epochs holds the *tail* of one and the *head* of the next; the head is
    rearranged so that it has no sample of the tail. So every sample still comes once per epoch, and
    no batch holds it twice, unless the batch takes more samples than there are. In such a batch a
    sample repeats only after all others, so that the share of a rank holds a sample twice only if
    the share is larger than the data set.

    For a data set of two batches or more, the few samples that change places are looked up. The
    epochs of a smaller one are computed in sequence from the last that began with a batch.

    Args:
        order: sample order within each epoch.
        boundary: function from an epoch to (samples of the epochs before it, samples of its own and
            the next ones) in the batch in which it begins.
        max_per_batch: maximum number of samples of this data set in a batch.
    """

    def __init__(
        self,
        order: EpochShuffle,
        boundary: Callable[[int], tuple[int, int]],
        max_per_batch: int,
    ) -> None:
        self.order, self.boundary, self.max_per_batch = order, boundary, max_per_batch
        self._small = len(order) < 2 * max_per_batch
        self._swaps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._epochs: dict[int, np.ndarray] = {}

    def numbers(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample numbers at `places` [n] of an epoch, int64 [n]."""
        if self._small:
            cached = lru_cached(self._epochs, epoch, CACHED_EPOCHS, lambda: self._replay(epoch))
            return cached[places]
        numbers = self.order.numbers(epoch, places)
        if epoch and places.min() < self.max_per_batch:  # later samples are not swapped
            swaps = lru_cached(self._swaps, epoch, 2, lambda: self._swap(epoch))
            for place, number in zip(*swaps, strict=True):
                numbers[places == place] = number
        return numbers

    def _swap(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of an epoch with other samples than in `order`, and these samples."""
        tail, head = self.boundary(epoch)
        tail_numbers = self.order.numbers(
            epoch - 1, np.arange(len(self.order) - tail, len(self.order))
        )
        first = self.order.numbers(epoch, np.arange(head + tail))
        repeats = np.isin(first, tail_numbers)
        in_head = np.flatnonzero(repeats[:head])
        after_head = head + np.flatnonzero(~repeats[head:])[: len(in_head)]
        return (
            np.concatenate([in_head, after_head]),
            first[np.concatenate([after_head, in_head])],
        )

    def _replay(self, epoch: int) -> np.ndarray:
        """All numbers of an epoch, int64 [samples], computed from the epochs before it."""
        first = epoch
        while first - 1 not in self._epochs and self.boundary(first)[0]:
            first -= 1
        numbers = self._epochs.get(first - 1, np.empty(0, np.int64))
        for each in range(first, epoch + 1):
            tail, head = self.boundary(each)
            shuffled = self.order.numbers(each, np.arange(len(self.order)))
            if tail:
                numbers = without_repeats(numbers[max(len(numbers) - tail, 0) :], shuffled, head)
            else:
                numbers = shuffled
        return numbers


def without_repeats(tail: np.ndarray, shuffled: np.ndarray, head: int) -> np.ndarray:
    """Rearrange an epoch so that its head repeats no number of the tail in the same batch.

    Args:
        tail: int64 [m], distinct numbers of the epoch before.
        shuffled: int64 [n], the epoch in its own order.
        head: number of samples of the epoch in the batch.
    """
    new = shuffled[~np.isin(shuffled, tail)]
    if head > len(new):  # the batch takes more samples than there are
        return np.concatenate([new, tail])
    return np.concatenate([new[:head], shuffled[~np.isin(shuffled, new[:head])]])
