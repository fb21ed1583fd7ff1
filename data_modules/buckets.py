"""Batches of samples of like length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triptych.randomness import mix


class Buckets:
    """Which positions of the run make its global batches, sorted by length within windows.

    A window is `batches` global batches. Its positions are sorted by size, cut into global
    batches, and these come in a random order; so each position is in one batch, and the batch at
    a step is a pure function of (seed, step, global batch), whatever ranks and workers there are.
    A rank takes a consecutive part of a global batch, whose sizes are yet nearer to each other.

    Args:
        sizes: positions [n] -> lengths [n] of their samples.
        global_batch: samples of a step on all ranks together.
        seed: of the order of batches.
        batches: global batches in a window.
    """

    def __init__(
        self,
        sizes: Callable[[np.ndarray], np.ndarray],
        global_batch: int,
        seed: int,
        batches: int = 64,
    ) -> None:
        self.sizes, self.global_batch, self.seed, self.batches = sizes, global_batch, seed, batches
        self._window, self._sorted = -1, np.empty(0, np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """The positions of global batch `step`, int64 [global_batch]."""
        window, place = divmod(step, self.batches)
        if window != self._window:
            self._window, self._sorted = window, self._sort(window)
        return self._sorted[place]

    def _sort(self, window: int) -> np.ndarray:
        """int64 [batches, global_batch], the window's positions."""
        samples = self.batches * self.global_batch
        positions = np.arange(window * samples, (window + 1) * samples)
        by_size = positions[np.argsort(self.sizes(positions), kind="stable")]
        draws = np.random.default_rng(mix(self.seed, window))
        return draws.permutation(by_size.reshape(self.batches, self.global_batch))
