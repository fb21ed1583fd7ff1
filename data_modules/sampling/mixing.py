"""Mixture weights: the data set of a sample as a pure function of its position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triptych.utils.errors import UserError

PERIOD = 4096


class Mixture:
    """Data sets mixed by weight, evenly: no draw, so no streak of one of them.

    The weights are rounded to PERIOD parts, and the order of one period is written out. Up to any
    position each data set has been given its share of the samples within less than one sample.

    Args:
        weights: weight of each data set, by name; relative to each other. 0 excludes a data set.

    Raises:
        UserError: a weight is negative or not a number, all are 0, or one is so small that it
            rounds
            to nothing.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.names = list(weights)
        self.parts = _parts(weights)
        """int64 [data sets], samples of each in a period."""
        self._table = _even(self.parts)
        # how many of the same data set stand before it in the period
        before = np.cumsum(self._table[:, None] == np.arange(len(self.parts)), axis=0)
        self._rank = np.take_along_axis(before, self._table[:, None], axis=1)[:, 0] - 1

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data set of each of `positions` [n], and samples taken from it before; int64 [n] each."""
        period, slot = np.divmod(np.asarray(positions, np.int64), PERIOD)
        chosen = self._table[slot]
        return chosen, period * self.parts[chosen] + self._rank[slot]

    def position(self, chosen: int, before: int) -> int:
        """The position of the sample of data set `chosen` before which it gave `before`."""
        period, rank = divmod(before, int(self.parts[chosen]))
        return period * PERIOD + int(np.flatnonzero(self._table == chosen)[rank])

    def most(self, chosen: int, positions: int) -> int:
        """Samples that data set `chosen` gives among so many positions in a row, at most."""
        periods, rest = divmod(positions, PERIOD)
        before = np.concatenate([[0], np.cumsum(np.tile(self._table == chosen, 2))])
        return periods * int(self.parts[chosen]) + int(
            (before[rest:] - before[: -rest or None]).max()
        )

    def given(self, position: int) -> np.ndarray:
        """int64 [data sets], how many samples each gives in all before `position`."""
        period, slot = divmod(position, PERIOD)
        return period * self.parts + np.bincount(self._table[:slot], minlength=len(self.parts))


def _parts(weights: Mapping[str, float]) -> np.ndarray:
    """Weights as int64 parts that sum to PERIOD, by largest remainder."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"data set {name!r} has the weight {weight}; give it 0 or more.")
    given = np.array(list(weights.values()), np.float64)
    if not given.any():
        raise UserError("the weights of the data sets sum to 0; give one of them more than 0.")
    exact = given / given.sum() * PERIOD
    parts = np.floor(exact).astype(np.int64)
    missing = PERIOD - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:missing]] += 1
    for name, weight, part in zip(weights, given, parts, strict=True):
        if weight > 0 and part == 0:
            raise UserError(
                f"data set {name!r} has less than 1/{PERIOD} of all weight; "
                "give it more, or 0 to leave it out."
            )
    return parts


def _even(parts: np.ndarray) -> np.ndarray:
    """int64 [PERIOD], the data set of each slot, each spread evenly.

    Sample k of a data set with share s may come from slot floor(k/s) on and must have come by
    slot ceil((k+1)/s). Taking whose time runs out first always succeeds (Baruah et al. 1996), and
    then no count is ever a whole sample away from its share.
    """
    shares = [(name, part) for name, part in enumerate(parts.tolist()) if part]
    given = [0] * len(parts)
    table = []
    for slot in range(PERIOD):
        _, chosen = min(
            (-(-(given[name] + 1) * PERIOD // part), name)
            for name, part in shares
            if given[name] * PERIOD < (slot + 1) * part
        )
        given[chosen] += 1
        table.append(chosen)
    return np.array(table)
