"""Epochs of the data sets of a run: no batch across their borders holds a sample twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triptych.data_modules.sampling.epoch_shuffle import EpochShuffle, keep

KEPT = 256  # epochs of a small data set that are held


class DistinctEpochs:
    """The epochs of one data set, one after the other, in batches that need not divide them.

    The batch in which an epoch ends holds the *tail* of that epoch and the *head* of the next: its
    samples are others than those of the tail. So every sample still comes once an epoch, and no
    batch holds it twice. Only a batch that takes more samples than there are does; there a sample
    comes again after all others, so that a part of the batch, as a rank takes it, holds one twice
    only if it is larger than the data set itself.

    For a data set of two batches or more, the few samples that change places are looked up. The
    epochs of a smaller one are followed from the last that began with a batch.

    Args:
        order: sample order within each epoch.
        border: epoch -> (samples of the epochs before it, samples of its own and the next ones) in
            the batch where it begins.
        most: maximum number of samples of this data set in a batch.
    """

    def __init__(
        self, order: EpochShuffle, border: Callable[[int], tuple[int, int]], most: int
    ) -> None:
        self.order, self.border, self.most = order, border, most
        self._small = len(order) < 2 * most
        self._exchanged: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._whole: dict[int, np.ndarray] = {}

    def numbers(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample numbers at `places` [n] of an epoch, int64 [n]."""
        if self._small:
            return keep(self._whole, epoch, KEPT, lambda: self._follow(epoch))[places]
        numbers = self.order.numbers(epoch, places)
        if epoch and places.min() < self.most:  # further on nothing is exchanged
            exchanged = keep(self._exchanged, epoch, 2, lambda: self._exchange(epoch))
            for place, number in zip(*exchanged, strict=True):
                numbers[places == place] = number
        return numbers

    def _exchange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of an epoch whose samples are others than in its order, and those samples."""
        tail, head = self.border(epoch)
        there = self.order.numbers(epoch - 1, np.arange(len(self.order) - tail, len(self.order)))
        first = self.order.numbers(epoch, np.arange(head + tail))
        again = np.isin(first, there)
        ours = np.flatnonzero(again[:head])
        theirs = head + np.flatnonzero(~again[head:])[: len(ours)]
        return np.concatenate([ours, theirs]), first[np.concatenate([theirs, ours])]

    def _follow(self, epoch: int) -> np.ndarray:
        """All numbers of an epoch, int64 [samples]."""
        first = epoch
        while first - 1 not in self._whole and self.border(first)[0]:
            first -= 1
        numbers = self._whole.get(first - 1, np.empty(0, np.int64))
        for each in range(first, epoch + 1):
            tail, head = self.border(each)
            drawn = self.order.numbers(each, np.arange(len(self.order)))
            numbers = behind(numbers[max(len(numbers) - tail, 0) :], drawn, head) if tail else drawn
        return numbers


def behind(there: np.ndarray, drawn: np.ndarray, head: int) -> np.ndarray:
    """The numbers of an epoch that has its `head` in the batch where others are `there` already.

    Args:
        there: int64 [m], different numbers.
        drawn: int64 [n], the epoch in the order that it would have by itself.
    """
    fresh = drawn[~np.isin(drawn, there)]
    if head > len(fresh):  # the batch takes more than there are
        return np.concatenate([fresh, there])
    return np.concatenate([fresh[:head], drawn[~np.isin(drawn, fresh[:head])]])
