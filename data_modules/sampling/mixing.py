"""Mixture weights: the data set of a sample as a pure function of its position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triptych.utils.errors import UserError

PERIOD = 4096


class Mixture:
    """Evenly interleaves data sets by weight, without random draws.

    The weights are rounded to quotas of a period of PERIOD samples, whose order is tabulated. Up to
    any position the number of samples of each data set is less than one sample from its share.

    Args:
        weights: relative weight of each data set, by name. 0 excludes a data set.

    Raises:
        UserError: a weight is negative or not a number, all are 0, or one rounds to 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.names = list(weights)
        self.quotas = _quotas(weights)
        """int64 [data sets], number of samples of each in a period."""
        self._table = _interleave(self.quotas)
        # number of samples of the same data set before each slot of the period
        before = np.cumsum(self._table[:, None] == np.arange(len(self.quotas)), axis=0)
        self._rank = np.take_along_axis(before, self._table[:, None], axis=1)[:, 0] - 1

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data set at each of `positions` [n], and its samples before; int64 [n] each."""
        period, slot = np.divmod(np.asarray(positions, np.int64), PERIOD)
        chosen = self._table[slot]
        return chosen, period * self.quotas[chosen] + self._rank[slot]

    def position(self, chosen: int, before: int) -> int:
        """Position of a sample of data set `chosen` with `before` of its samples before it."""
        period, rank = divmod(before, int(self.quotas[chosen]))
        return period * PERIOD + int(np.flatnonzero(self._table == chosen)[rank])

    def max_count(self, chosen: int, positions: int) -> int:
        """Maximum number of samples of data set `chosen` in so many consecutive positions."""
        periods, rest = divmod(positions, PERIOD)
        before = np.concatenate([[0], np.cumsum(np.tile(self._table == chosen, 2))])
        return periods * int(self.quotas[chosen]) + int(
            (before[rest:] - before[: -rest or None]).max()
        )

    def counts_before(self, position: int) -> np.ndarray:
        """int64 [data sets], number of samples of each before `position`."""
        period, slot = divmod(position, PERIOD)
        return period * self.quotas + np.bincount(self._table[:slot], minlength=len(self.quotas))


def _quotas(weights: Mapping[str, float]) -> np.ndarray:
    """Weights as int64 quotas that sum to PERIOD, by largest remainder."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"data set {name!r} has the weight {weight}; give it 0 or more.")
    values = np.array(list(weights.values()), np.float64)
    if not values.any():
        raise UserError("the weights of the data sets sum to 0; give one of them more than 0.")
    exact = values / values.sum() * PERIOD
    quotas = np.floor(exact).astype(np.int64)
    missing = PERIOD - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    for name, weight, quota in zip(weights, values, quotas, strict=True):
        if weight > 0 and quota == 0:
            raise UserError(
                f"data set {name!r} has less than 1/{PERIOD} of all weight; "
                "give it more, or 0 to leave it out."
            )
    return quotas


def _interleave(quotas: np.ndarray) -> np.ndarray:
    """Data set of each slot of a period, evenly spread, int64 [PERIOD].

    Sample k of a data set with share s is due between the slots floor(k/s) and ceil((k+1)/s).
    Earliest deadline first always succeeds (Baruah et al. 1996), and then no count is ever a whole
    sample away from its share.
    """
    included = [(dataset, quota) for dataset, quota in enumerate(quotas.tolist()) if quota]
    counts = [0] * len(quotas)
    table = []
    for slot in range(PERIOD):
        _, chosen = min(
            (-(-(counts[dataset] + 1) * PERIOD // quota), dataset)
            for dataset, quota in included
            if counts[dataset] * PERIOD < (slot + 1) * quota
        )
        counts[chosen] += 1
        table.append(chosen)
    return np.array(table)
