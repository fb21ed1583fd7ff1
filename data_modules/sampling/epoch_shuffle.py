"""The order in which an epoch goes through one data set, found piece by piece.

A full permutation would read all over the disk, and would have to be held. Here shards are
permuted, some of them are gone through side by side, and the samples of a *window*, one stretch
of each of them, are permuted: reads stay near each other, neighbours in a shard are strangers in
training. A window is computed at its first use, without those before it.
"""

from __future__ import annotations

import numpy as np

from triptych.utils.rng import mix

_PLAN, _WINDOW = 0, 1  # streams of random numbers


class EpochShuffle:
    """Every sample of a data set once an epoch, in an order that is another one every epoch.

    A pure function of (shard sizes, seed, epoch, place). Data sets that fit in one window are
    permuted as a whole; shards so large that they would make windows of their own count as
    several.

    Args:
        shard_sizes: int64 [shards], number of samples of each shard; numbers count through them.
        seed: random seed of the order.
        interleave: number of shards that are read side by side: as many as a window touches.
        window: approximate number of samples that are permuted together.
    """

    def __init__(
        self, shard_sizes: np.ndarray, seed: int, interleave: int = 64, window: int = 1 << 16
    ) -> None:
        self.seed, self.window = seed, window
        self._firsts, self._sizes = _pieces(np.asarray(shard_sizes, np.int64), window // 4)
        self.length = int(self._sizes.sum())
        pieces = len(self._sizes)
        self._groups = 1 if self.length <= window else -(-pieces // interleave)
        self._plans: dict[int, _Plan] = {}
        self._windows: dict[tuple[int, int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def numbers(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample numbers at `places` [n] of an epoch, int64 [n]; each place in [0, len(self)).

        Costs as much as the windows that it touches; those of last time are still there.
        """
        places = np.asarray(places, np.int64)
        plan = keep(self._plans, epoch, 2, lambda: self._plan(epoch))
        numbers = np.empty(len(places), np.int64)
        group_of = np.searchsorted(plan.starts, places, "right") - 1
        for group in np.unique(group_of).tolist():
            in_group = np.flatnonzero(group_of == group)
            bounds = plan.starts[group] + plan.cuts(group).sum(0)
            window_of = np.searchsorted(bounds, places[in_group], "right") - 1
            for window in np.unique(window_of).tolist():
                found = in_group[window_of == window]
                samples = self._samples(plan, epoch, group, window)
                numbers[found] = samples[places[found] - bounds[window]]
        return numbers

    def _plan(self, epoch: int) -> _Plan:
        """Interleaving plan of an epoch: groups of shards, and the start within each shard."""
        draws = np.random.default_rng(mix(self.seed, _PLAN, epoch))
        shuffled = draws.permutation(len(self._sizes))
        return _Plan(
            np.array_split(self._firsts[shuffled], self._groups),
            np.array_split(self._sizes[shuffled], self._groups),
            np.array_split(draws.integers(0, self._sizes[shuffled]), self._groups),
            self.window,
        )

    def _samples(self, plan: _Plan, epoch: int, group: int, window: int) -> np.ndarray:
        """The sample numbers of a window in their order."""
        key = (epoch, group, window)
        return keep(self._windows, key, 8, lambda: self._permuted(plan, *key))

    def _permuted(self, plan: _Plan, epoch: int, group: int, window: int) -> np.ndarray:
        cuts = plan.cuts(group)
        starts, stops = cuts[:, window], cuts[:, window + 1]
        pieces = zip(
            plan.firsts[group], plan.sizes[group], plan.turns[group], starts, stops, strict=True
        )
        samples = np.concatenate(
            [first + (turn + np.arange(a, b)) % size for first, size, turn, a, b in pieces]
        )
        draws = np.random.default_rng(mix(self.seed, _WINDOW, epoch, group, window))
        return draws.permutation(samples)


class _Plan:
    """The groups of an epoch: pieces of shards that are gone through side by side.

    firsts, sizes and turns are lists [groups] of int64 [pieces of the group]: the number of a
    piece's first sample, how many it has, and with which one it starts.
    """

    def __init__(self, firsts, sizes, turns, window: int) -> None:
        self.firsts, self.sizes, self.turns, self.window = firsts, sizes, turns, window
        totals = np.array([each.sum() for each in sizes])
        self.starts = np.concatenate([[0], np.cumsum(totals)[:-1]])
        """int64 [groups], the place in the epoch where each group starts."""

    def cuts(self, group: int) -> np.ndarray:
        """int64 [pieces, windows + 1]: window j takes [cuts[:, j], cuts[:, j+1]) of each piece.

        All pieces of a group end together, whatever their sizes.
        """
        sizes = self.sizes[group]
        windows = max(1, -(-int(sizes.sum()) // self.window))
        return sizes[:, None] * np.arange(windows + 1) // windows


def _pieces(shard_sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Shards cut into equal pieces of at most `most` samples: their first numbers and sizes."""
    parts = -(-shard_sizes // most)  # none of an empty shard
    shard_of = np.repeat(np.arange(len(shard_sizes)), parts)
    part = np.arange(len(shard_of)) - np.repeat(np.cumsum(parts) - parts, parts)
    sizes, parts = shard_sizes[shard_of], parts[shard_of]
    start, stop = sizes * part // parts, sizes * (part + 1) // parts
    return (np.cumsum(shard_sizes) - shard_sizes)[shard_of] + start, stop - start


def keep(kept: dict, key, most: int, make):
    """kept[key], made where it is missing; only the last `most` that were used are kept."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    if len(kept) > most:
        kept.pop(next(iter(kept)))
    return value
