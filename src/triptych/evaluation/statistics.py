"""Means and shares with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy

DRAWS = 2000


def bootstrap(
    groups: Sequence[Sequence[Sequence[float]]], weights: Sequence[float], seed: int = 0
) -> tuple[float, float] | None:
    """The 95% interval of a weighted sum of group means (percentile bootstrap, Efron 1979).

    None if all resamples are equal, as for equal values: that does not measure uncertainty.

    Args:
        groups: clusters of each group, and values of each cluster. Clusters, such as the images of
            one prompt, are resampled whole, as their values are dependent; groups, such as the
            tasks of a benchmark, are fixed.
        weights: weights of the groups, one each.
        seed: random seed of the resampling; equal values give equal intervals.
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


def mean(values: Iterable[float]) -> float:
    """Mean of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95% interval of a share over `number` independent trials (Wilson 1927)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    spread = share * (1 - share) / number + z2 / (4 * number**2)
    half = (z2 * spread) ** 0.5 / (1 + z2 / number)
    return max(0.0, middle - half), min(1.0, middle + half)
