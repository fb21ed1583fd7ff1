"""Batches of samples of like length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triptych.utils.rng import mix


class LengthBuckets:
    """Length buckets: global batches of positions, sorted by length within windows.

    A window is at most `batches` global batches, which `bounds` says may change places. Its
    positions are sorted by size, cut into global batches, and these come in a random order; so
    each position is in one batch, and the batch at a step is a pure function of (seed, step, global
    batch), whatever ranks and workers there are. A rank takes a consecutive part of a global
    batch, whose sizes are yet nearer to each other.

    Args:
        sizes: function from positions [n] to lengths [n] of their samples.
        global_batch: number of samples of a step on all ranks together.
        seed: random seed of the order of batches.
        batches: maximum number of global batches in a window.
        bounds: function from a step to the batches [start, stop) around it that bound windows.
    """

    def __init__(
        self,
        sizes: Callable[[np.ndarray], np.ndarray],
        global_batch: int,
        seed: int,
        batches: int,
        bounds: Callable[[int], tuple[int, int]],
    ) -> None:
        self.sizes, self.global_batch, self.seed = sizes, global_batch, seed
        self.batches, self.bounds = batches, bounds
        self._window = range(0)
        self._sorted = np.empty((0, global_batch), np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """The positions of global batch `step`, int64 [global_batch]."""
        if step not in self._window:
            self._window = self._window_of(step)
            self._sorted = self._sort(self._window)
        return self._sorted[step - self._window.start]

    def _window_of(self, step: int) -> range:
        """The batches of the window that `step` is in; windows between two bounds are alike."""
        start, stop = self.bounds(step)
        windows = -(-(stop - start) // self.batches)
        number = ((step - start + 1) * windows - 1) // (stop - start)
        first, last = (start + (stop - start) * n // windows for n in (number, number + 1))
        return range(first, last)

    def _sort(self, window: range) -> np.ndarray:
        """int64 [batches, global_batch], the window's positions."""
        positions = np.arange(window.start * self.global_batch, window.stop * self.global_batch)
        if len(window) > 1:
            positions = positions[np.argsort(self.sizes(positions), kind="stable")]
        draws = np.random.default_rng(mix(self.seed, window.start))
        return draws.permutation(positions.reshape(len(window), self.global_batch))
