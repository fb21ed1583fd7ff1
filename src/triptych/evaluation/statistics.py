"""How sure a mean is: intervals by drawing the items again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

DRAWS = 2000


def bootstrap(
    groups: Sequence[Sequence[Sequence[float]]], weights: Sequence[float], seed: int = 0
) -> tuple[float, float] | None:
    """The 95% interval of a weighted sum of group means (percentile bootstrap, Efron 1979).

    None where every draw is the same, as of equal values: that says nothing of how sure they are.

    Args:
        groups: of each group its clusters, of each cluster its values. Clusters, such as the
            pictures of one prompt, are drawn whole, as their values depend on each other; groups,
            such as the tasks of a benchmark, are fixed.
        weights: one a group.
        seed: of the draws: equal values give equal intervals.
    """
    generator = numpy.random.default_rng(seed)
    totals = numpy.zeros(DRAWS)
    for clusters, weight in zip(groups, weights, strict=True):
        sums = numpy.array([sum(cluster) for cluster in clusters], float)
        sizes = numpy.array([len(cluster) for cluster in clusters], float)
        drawn = generator.integers(len(clusters), size=(DRAWS, len(clusters)))
        totals += weight * sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = numpy.percentile(totals, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None
