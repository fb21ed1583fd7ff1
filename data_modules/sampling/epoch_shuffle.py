"""Order of samples in one epoch of a data set, computed window by window.

A full permutation would read all over the disk, and would be held in memory. Here shards are
permuted, groups of them are interleaved, and the samples of a *window*, one range of each shard of
a group, are permuted: reads stay near each other, and neighbours in a shard are apart in training.
A window is computed at its first use, without those before it.
"""

from __future__ import annotations

import numpy as np

from triptych.utils.rng import mix

_PLAN, _WINDOW = 0, 1  # words of `mix` that make the draws of plans and windows independent


class EpochShuffle:
    """Shuffles the samples of a data set anew every epoch; each comes once per epoch.

    A pure function of (shard sizes, seed, epoch, position). Data sets that fit in one window are
    permuted as a whole; large shards are split into chunks, so that a window holds several.

    Args:
        shard_sizes: int64 [shards], number of samples of each shard, in the order of the sample
            numbers.
        seed: random seed of the order.
        interleave: number of chunks of shards that a window reads.
        window: approximate number of samples that are permuted together.
    """

    def __init__(
        self, shard_sizes: np.ndarray, seed: int, *, interleave: int = 64, window: int = 1 << 16
    ) -> None:
        self.seed, self.window = seed, window
        self._firsts, self._sizes = _split_shards(np.asarray(shard_sizes, np.int64), window // 4)
        self.length = int(self._sizes.sum())
        chunks = len(self._sizes)
        self._groups = 1 if self.length <= window else -(-chunks // interleave)
        self._plans: dict[int, _Plan] = {}
        self._windows: dict[tuple[int, int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def numbers(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample numbers at `places` [n] of an epoch, int64 [n]; each place in [0, len(self)).

        Computes only the windows of these places; recent ones are cached.
        """
        places = np.asarray(places, np.int64)
        plan = lru_cached(self._plans, epoch, 2, lambda: self._plan(epoch))
        numbers = np.empty(len(places), np.int64)
        group_of = np.searchsorted(plan.starts, places, "right") - 1
        for group in np.unique(group_of).tolist():
            in_group = np.flatnonzero(group_of == group)
            bounds = plan.starts[group] + plan.bounds(group).sum(0)
            window_of = np.searchsorted(bounds, places[in_group], "right") - 1
            for window in np.unique(window_of).tolist():
                in_window = in_group[window_of == window]
                samples = self._samples(plan, epoch, group, window)
                numbers[in_window] = samples[places[in_window] - bounds[window]]
        return numbers

    def _plan(self, epoch: int) -> _Plan:
        """Interleaving plan of an epoch: groups of chunks, and a rotation of each chunk."""
        rng = np.random.default_rng(mix(self.seed, _PLAN, epoch))
        shuffled = rng.permutation(len(self._sizes))
        return _Plan(
            np.array_split(self._firsts[shuffled], self._groups),
            np.array_split(self._sizes[shuffled], self._groups),
            np.array_split(rng.integers(0, self._sizes[shuffled]), self._groups),
            self.window,
        )

    def _samples(self, plan: _Plan, epoch: int, group: int, window: int) -> np.ndarray:
        """The shuffled sample numbers of a window."""
        key = (epoch, group, window)
        return lru_cached(self._windows, key, 8, lambda: self._permuted(plan, *key))

    def _permuted(self, plan: _Plan, epoch: int, group: int, window: int) -> np.ndarray:
        bounds = plan.bounds(group)
        starts, stops = bounds[:, window], bounds[:, window + 1]
        chunks = zip(
            plan.firsts[group], plan.sizes[group], plan.rotations[group], starts, stops, strict=True
        )
        samples = np.concatenate(
            [
                first + (rotation + np.arange(start, stop)) % size
                for first, size, rotation, start, stop in chunks
            ]
        )
        rng = np.random.default_rng(mix(self.seed, _WINDOW, epoch, group, window))
        return rng.permutation(samples)


class _Plan:
    """Groups of chunks that are interleaved in an epoch.

    Args:
        firsts: list [groups] of int64 [chunks], number of the first sample of each chunk.
        sizes: list [groups] of int64 [chunks], number of samples of each chunk.
        rotations: list [groups] of int64 [chunks], first offset that is read of each chunk.
        window: approximate number of samples of a window.
    """

    def __init__(
        self,
        firsts: list[np.ndarray],
        sizes: list[np.ndarray],
        rotations: list[np.ndarray],
        window: int,
    ) -> None:
        self.firsts, self.sizes, self.rotations, self.window = firsts, sizes, rotations, window
        totals = np.array([each.sum() for each in sizes])
        self.starts = np.concatenate([[0], np.cumsum(totals)[:-1]])
        """int64 [groups], place in the epoch at which each group starts."""

    def bounds(self, group: int) -> np.ndarray:
        """int64 [chunks, windows + 1]: window j takes [bounds[:, j], bounds[:, j+1]) of each chunk.

        All chunks of a group end together, whatever their sizes.
        """
        sizes = self.sizes[group]
        windows = max(1, -(-int(sizes.sum()) // self.window))
        return sizes[:, None] * np.arange(windows + 1) // windows


def _split_shards(shard_sizes: np.ndarray, max_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split shards into equal chunks of at most `max_size` samples: first numbers and sizes."""
    chunks = -(-shard_sizes // max_size)  # 0 for an empty shard
    shard_of = np.repeat(np.arange(len(shard_sizes)), chunks)
    chunk = np.arange(len(shard_of)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    sizes, chunks = shard_sizes[shard_of], chunks[shard_of]
    start, stop = sizes * chunk // chunks, sizes * (chunk + 1) // chunks
    return (np.cumsum(shard_sizes) - shard_sizes)[shard_of] + start, stop - start


def lru_cached(cache: dict, key, max_size: int, compute):
    """Return cache[key], computed if it is missing; keep the `max_size` most recently used."""
    value = cache.pop(key) if key in cache else compute()
    cache[key] = value
    if len(cache) > max_size:
        cache.pop(next(iter(cache)))
    return value
