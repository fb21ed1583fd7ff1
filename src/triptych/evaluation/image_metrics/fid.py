"""FID and KID between generated and real images, over all images and by category.

Both come from torchmetrics. Neither suffices by itself: FID falls with the number of images, and
each value is specific to one feature space. A report has both.
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

BLOCK = 1024  # number of rows of a kernel matrix in memory


@dataclass(frozen=True)
class KidSettings:
    """KID averaging: over `subsets` random subsets of `subset_size` images, fewer if there are
    fewer images. Defaults are the published ones (Binkowski et al. 2018, arXiv 1801.01401)."""

    subset_size: int = 1000
    subsets: int = 100
    seed: int = 0
    draws: int = 500
    """Number of bootstrap resamples of the interval."""


def score(
    images: ImageSource,
    reference: ImageSource,
    space: FeatureSpace,
    *,
    kid: KidSettings | None = None,
    batch_size: int = 64,
) -> Report:
    """FID and KID of `images` against `reference`, over all images and for each shared category.

    Args:
        images: generated images; see `read_images`.
        reference: real images; see `read_images`.
        space: feature space of the distances.
        kid: averaging of KID; None is the published one.
        batch_size: number of images at a time; affects only rounding, speed and memory.

    Raises:
        UserError: one of the two is missing or has fewer than two readable images.
    """
    kid = kid or KidSettings()
    entries = read_images(images), read_images(reference)
    generated, true = (extract(space, each, batch_size) for each in entries)
    report = Report(
        benchmark="fid",
        scores={},
        judged_by=space.label,
        counts={
            "expected": len(generated.entries) + len(generated.excluded),
            "scored": len(generated.entries),
            **count_states(generated.excluded),
            "reference": len(true.entries),
            "reference_left_out": len(true.excluded),
        },
        settings={
            "folder": source_name(images),
            "reference": source_name(reference),
            **space.settings,
            "kid_subset_size": min(kid.subset_size, len(generated.features), len(true.features)),
            "kid_subsets": kid.subsets,
            "seed": kid.seed,
            "warnings": [f"reference: {each.key}: {each.note}" for each in true.excluded],
        },
        items=[entry.item() for entry in [*generated.entries, *generated.excluded]],
    )
    _add(report, "", generated.features, true.features, kid)
    for category in _shared_categories(generated, true):
        _add(report, f", {category}", _of(generated, category), _of(true, category), kid)
    return report


def _add(report: Report, name: str, generated: Tensor, true: Tensor, kid: KidSettings) -> None:
    """Add both distances between features [N,F] and [M,F], as "FID" and "KID" plus `name`."""
    number = min(len(generated), len(true))
    if number < 2:
        where = name.removeprefix(", ") or "all images"
        if not name:
            raise UserError(f"FID needs two images on either side; there are {number}.")
        _warn(report, f"{where}: fewer than two images, left out")
        return
    report.scores[f"FID{name}"] = frechet_distance(generated, true)
    report.scores[f"KID{name}"] = kernel_distance(generated, true, kid)
    report.intervals[f"KID{name}"] = kernel_interval(generated, true, kid)
    report.numbers[f"FID{name}"] = report.numbers[f"KID{name}"] = len(generated)
    if (warning := small_sample(generated, true)) is not None:
        _warn(report, f"FID{name}: {warning}")


def _warn(report: Report, warning: str) -> None:
    report.settings["warnings"].append(warning)
    log.warning("%s.", warning)


def small_sample(generated: Tensor, true: Tensor) -> str | None:
    """Warning about FID between so few features [N,F] and [M,F]; None if there are enough.

    A covariance of F features has at most N - 1 directions: with N <= F it is singular, and FID is
    dominated by its bias, which differs with N.
    """
    number, width = min(len(generated), len(true)), generated.shape[1]
    if number > width:
        return None
    return (
        f"{number} images are too few for {width} features: the covariance is singular, and FID "
        "is far too high and compares only with FID over equally many; read KID"
    )


# --- distances between features -------------------------------------------------------------------


class _Ready(nn.Identity):
    """Identity network for torchmetrics: its input is features, computed once for both metrics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def frechet_distance(generated: Tensor, true: Tensor) -> float:
    """FID (Heusel et al. 2017, arXiv 1706.08500) between features [N,F] and [M,F]."""
    metric = FrechetInceptionDistance(feature=_Ready(generated.shape[1]))
    metric.update(true.double(), real=True)
    metric.update(generated.double(), real=False)
    return metric.compute().item()


def kernel_distance(generated: Tensor, true: Tensor, settings: KidSettings) -> float:
    """KID between features [N,F] and [M,F]: the unbiased MMD^2 under a cubic kernel."""
    size = min(settings.subset_size, len(generated), len(true))
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global generator
        torch.manual_seed(settings.seed)
        metric = KernelInceptionDistance(_Ready(generated.shape[1]), settings.subsets, size)
        metric.update(true.double(), real=True)
        metric.update(generated.double(), real=False)
        return metric.compute()[0].item()


def kernel_interval(generated: Tensor, true: Tensor, settings: KidSettings) -> tuple[float, float]:
    """The 95% interval of KID by resampling both sets of images.

    The sets are assumed to be independent: for images and their own reconstructions the interval
    is too wide. An image that is drawn twice is not paired with itself, which would bias every
    resample upwards (Arcones and Gine 1992, on the bootstrap of U-statistics).
    """
    rng = numpy.random.default_rng(settings.seed)
    weights = [
        torch.from_numpy(rng.multinomial(n, numpy.full(n, 1 / n), settings.draws)).double()
        for n in (len(true), len(generated))
    ]
    true, generated = true.double(), generated.double()
    draws = (
        _mean_within(true, weights[0])
        + _mean_within(generated, weights[1])
        - 2 * _sum_across(true, generated, *weights) / (len(true) * len(generated))
    )
    low, high = numpy.nanpercentile(draws.numpy(), [2.5, 97.5])
    return float(low), float(high)


def _mean_within(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the kernel over pairs of different images; weights [R,N] -> [R].

    nan if a resample consists of a single image, as there are no pairs.
    """
    total = _sum_across(features, features, weights, weights)
    square = weights.square()
    own = (features.square().sum(1) / features.shape[1] + 1) ** 3  # poly_kernel of each with itself
    pairs = len(features) ** 2 - square.sum(1)
    # compared with 0: with rounding, 0 / 0 may be a large number instead of nan
    return torch.where(pairs > 0, (total - square @ own) / pairs, torch.nan)


def _sum_across(first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sum of the kernel over all pairs; weights [R,N] and [R,M] -> [R]."""
    return sum(
        ((rows[:, at : at + BLOCK] @ poly_kernel(first[at : at + BLOCK], second)) * columns).sum(1)
        for at in range(0, len(first), BLOCK)
    )


# --- categories ----------------------------------------------------------------------------------


def _shared_categories(generated: Extracted, true: Extracted) -> list[str]:
    """Categories of both sides, unless there is only one."""
    shared = {e.category for e in generated.entries} & {e.category for e in true.entries} - {None}
    return sorted(shared) if len(shared) > 1 else []


def _of(extracted: Extracted, category: str) -> Tensor:
    rows = [n for n, entry in enumerate(extracted.entries) if entry.category == category]
    return extracted.features[rows]
