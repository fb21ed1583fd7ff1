"""Length buckets: batches of samples of similar length, with little padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triptych.utils.rng import mix


class LengthBuckets:
    """Global batches of positions, sorted by length within windows.

    A window is at most `batches` global batches within `bounds`. Its positions are sorted by length
    and split into global batches, and these are shuffled; so each position is in one batch, and
    the batch at a step is a pure function of (seed, step, global batch), whatever the ranks and
    workers. A rank takes a consecutive share of a global batch, with even more similar lengths.

    Args:
        lengths: function from positions [n] to lengths [n] of their samples.
        global_batch: number of samples of a step on all ranks together.
        seed: random seed of the order of batches.
        batches: maximum number of global batches in a window.
        bounds: function from a step to the batches [start, stop) around it that a window must not
            leave.
    """

    def __init__(
        self,
        lengths: Callable[[np.ndarray], np.ndarray],
        global_batch: int,
        *,
        seed: int,
        batches: int,
        bounds: Callable[[int], tuple[int, int]],
    ) -> None:
        self.lengths, self.global_batch, self.seed = lengths, global_batch, seed
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
        """The batches of the window of `step`; windows within the same bounds are equally long."""
        start, stop = self.bounds(step)
        windows = -(-(stop - start) // self.batches)
        number = ((step - start + 1) * windows - 1) // (stop - start)
        first, last = (start + (stop - start) * n // windows for n in (number, number + 1))
        return range(first, last)

    def _sort(self, window: range) -> np.ndarray:
        """Sorted and shuffled positions of a window, int64 [batches, global_batch]."""
        positions = np.arange(window.start * self.global_batch, window.stop * self.global_batch)
        if len(window) > 1:
            positions = positions[np.argsort(self.lengths(positions), kind="stable")]
        rng = np.random.default_rng(mix(self.seed, window.start))
        return rng.permutation(positions.reshape(len(window), self.global_batch))
