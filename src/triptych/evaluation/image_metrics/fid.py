"""Distance between generated and real images: FID and KID, over all and by category.

Both come from torchmetrics. Neither suffices by itself: FID falls with the number of images,
and each figure holds in one feature space only. So a report names both.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel

from triptych.evaluation.image_metrics.feature_space import Extracted, FeatureSpace, extract
from triptych.evaluation.image_sources import ImageSource, count_states, read_images, source_name
from triptych.evaluation.report import Report
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 1024  # rows of a kernel matrix in memory


@dataclass(frozen=True)
class KidSettings:
    """KID averaging: over `subsets` random subsets of `subset_size` images, as published
    (Binkowski et al. 2018, arXiv 1801.01401); fewer where there are fewer images."""

    subset_size: int = 1000
    subsets: int = 100
    seed: int = 0
    draws: int = 500
    """Number of bootstrap draws behind the interval."""


def score(
    images: ImageSource,
    reference: ImageSource,
    space: FeatureSpace,
    kid: KidSettings | None = None,
    batch_size: int = 64,
) -> Report:
    """FID and KID of `images` against `reference`, over all and for each category that both have.

    Args:
        images, reference: folders of images, of shards, or images; see `read_images`.
        space: feature space of the distances.
        kid: averaging of KID; None is as published.
        batch_size: images at a time; affects only rounding, speed and memory.

    Raises:
        UserError: one of the two is missing or has fewer than two images that can be read.
    """
    kid = kid or KidSettings()
    entries = read_images(images), read_images(reference)
    made, true = (extract(space, each, batch_size) for each in entries)
    report = Report(
        benchmark="fid",
        scores={},
        judged_by=space.label,
        counts={
            "asked": len(made.entries) + len(made.left_out),
            "scored": len(made.entries),
            **count_states(made.left_out),
            "reference": len(true.entries),
            "reference_left_out": len(true.left_out),
        },
        settings={
            "folder": source_name(images),
            "reference": source_name(reference),
            **space.settings,
            "kid_subset_size": min(kid.subset_size, len(made.features), len(true.features)),
            "kid_subsets": kid.subsets,
            "seed": kid.seed,
            "warnings": [f"reference: {each.key}: {each.note}" for each in true.left_out],
        },
        items=[entry.item() for entry in [*made.entries, *made.left_out]],
    )
    _add(report, "", made.features, true.features, kid)
    for category in _shared_categories(made, true):
        _add(report, f", {category}", _of(made, category), _of(true, category), kid)
    return report


def _add(report: Report, name: str, made: Tensor, true: Tensor, kid: KidSettings) -> None:
    """Both distances between features [N,F] and [M,F], under "FID" and "KID" and the name."""
    number = min(len(made), len(true))
    if number < 2:
        where = name.removeprefix(", ") or "all images"
        if not name:
            raise UserError(f"FID needs two images on either side; there are {number}.")
        _warn(report, f"{where}: fewer than two images, left out")
        return
    report.scores[f"FID{name}"] = frechet_distance(made, true)
    report.scores[f"KID{name}"] = kernel_distance(made, true, kid)
    report.intervals[f"KID{name}"] = kernel_interval(made, true, kid)
    report.numbers[f"FID{name}"] = report.numbers[f"KID{name}"] = len(made)
    if (warning := small_sample(made, true)) is not None:
        _warn(report, f"FID{name}: {warning}")


def _warn(report: Report, warning: str) -> None:
    report.settings["warnings"].append(warning)
    log.warning("%s.", warning)


def small_sample(made: Tensor, true: Tensor) -> str | None:
    """Warning about FID between so few features [N,F] and [M,F]; None if there are enough.

    A covariance of F features has at most N - 1 directions: with N <= F it is singular, and FID is
    dominated by its bias, which differs with N.
    """
    number, width = min(len(made), len(true)), made.shape[1]
    if number > width:
        return None
    return (
        f"{number} images are too few for {width} features: the covariance is singular, and FID "
        "is far too high and compares only with FID over equally many; read KID"
    )


# --- distances between features -------------------------------------------------------------------


class _Ready(nn.Identity):
    """Identity network for torchmetrics, whose input is features already: one pass serves both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def frechet_distance(made: Tensor, true: Tensor) -> float:
    """FID (Heusel et al. 2017, arXiv 1706.08500) between features [N,F] and [M,F]."""
    metric = FrechetInceptionDistance(feature=_Ready(made.shape[1]))
    metric.update(true.double(), real=True)
    metric.update(made.double(), real=False)
    return metric.compute().item()


def kernel_distance(made: Tensor, true: Tensor, settings: KidSettings) -> float:
    """KID between features [N,F] and [M,F]: the unbiased MMD^2 under a cubic kernel."""
    size = min(settings.subset_size, len(made), len(true))
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global generator
        torch.manual_seed(settings.seed)
        metric = KernelInceptionDistance(_Ready(made.shape[1]), settings.subsets, size)
        metric.update(true.double(), real=True)
        metric.update(made.double(), real=False)
        return metric.compute()[0].item()


def kernel_interval(made: Tensor, true: Tensor, settings: KidSettings) -> tuple[float, float]:
    """The 95% interval of KID: both sets of images drawn again, the whole sets at once.

    It takes the sets for independent: of images and their own reconstructions it is too wide.
    An image that is drawn twice is not paired with itself: that would bias every draw upwards
    (Arcones and Gine 1992, on the bootstrap of U-statistics).
    """
    rng = numpy.random.default_rng(settings.seed)
    weights = [
        torch.from_numpy(rng.multinomial(n, numpy.full(n, 1 / n), settings.draws)).double()
        for n in (len(true), len(made))
    ]
    true, made = true.double(), made.double()
    draws = (
        _mean_within(true, weights[0])
        + _mean_within(made, weights[1])
        - 2 * _sum_across(true, made, *weights) / (len(true) * len(made))
    )
    low, high = numpy.nanpercentile(draws.numpy(), [2.5, 97.5])
    return float(low), float(high)


def _mean_within(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the kernel over pairs of different images; weights [R,N] -> [R].

    nan where one image was drawn every time: there are no such pairs.
    """
    total = _sum_across(features, features, weights, weights)
    square = weights.square()
    own = (features.square().sum(1) / features.shape[1] + 1) ** 3  # poly_kernel of each with itself
    pairs = len(features) ** 2 - square.sum(1)
    # by comparison: rounding can leave the sum that is divided by 0 a little off 0
    return torch.where(pairs > 0, (total - square @ own) / pairs, torch.nan)


def _sum_across(first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sum of the kernel over all pairs; weights [R,N] and [R,M] -> [R]."""
    return sum(
        ((rows[:, at : at + BLOCK] @ poly_kernel(first[at : at + BLOCK], second)) * columns).sum(1)
        for at in range(0, len(first), BLOCK)
    )


# --- categories ----------------------------------------------------------------------------------


def _shared_categories(made: Extracted, true: Extracted) -> list[str]:
    """Those of both sides, unless there is only one."""
    shared = {e.category for e in made.entries} & {e.category for e in true.entries} - {None}
    return sorted(shared) if len(shared) > 1 else []


def _of(extracted: Extracted, category: str) -> Tensor:
    rows = [n for n, entry in enumerate(extracted.entries) if entry.category == category]
    return extracted.features[rows]
