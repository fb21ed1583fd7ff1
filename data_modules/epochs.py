"""Epochs of the data sets of a run: no batch across their borders holds a sample twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .order import EpochOrder


class DistinctEpochs:
    """The epochs of one data set, one after the other, in batches that need not divide them.

    The batch in which an epoch ends holds the *tail* of that epoch and the *head* of the next. A
    sample of the head that is in the tail changes places with the first one after the head that is
    not. So every sample still comes once an epoch, and no batch holds it twice; only a batch
    that takes more samples than there are does.

    Args:
        order: of each epoch by itself.
        border: epoch -> (samples of the tail of the epoch before it, samples of its own head) in
            the batch where it begins.
        most: samples of this data set in a batch, at most.
    """

    def __init__(
        self, order: EpochOrder, border: Callable[[int], tuple[int, int]], most: int
    ) -> None:
        self.order, self.border = order, border
        self._fits = len(order) >= most
        # A head changes places among the first `most` of its epoch. Where the tail begins after
        # those it is as in the order itself; else it follows from the epochs before.
        self._independent = len(order) >= 2 * most
        self._moved: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def numbers(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample numbers at `places` [n] of an epoch, int64 [n]."""
        numbers = self.order.numbers(epoch, places)
        if self._fits:
            for place, number in zip(*self._changes(epoch), strict=True):
                numbers[places == place] = number
        return numbers

    def _changes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of an epoch whose samples are others than in its order, and those samples."""
        if epoch not in self._moved:
            first = epoch
            if not self._independent:  # one after the other: there may be many
                while first > 0 and first - 1 not in self._moved:
                    first -= 1
            for each in range(first, epoch + 1):
                self._moved[each] = self._exchange(each)
                if len(self._moved) > 4:
                    self._moved.pop(next(iter(self._moved)))
        return self._moved[epoch]

    def _exchange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        tail, head = self.border(epoch)
        if not tail or not head:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        length = len(self.order)
        before = np.arange(length - tail, length)
        ends = self.order if self._independent else self
        last = ends.numbers(epoch - 1, before)
        first = self.order.numbers(epoch, np.arange(head + tail))
        again = np.isin(first, last)
        here = np.flatnonzero(again[:head])
        there = head + np.flatnonzero(~again[head:])[: len(here)]
        return np.concatenate([here, there]), np.concatenate([first[there], first[here]])
