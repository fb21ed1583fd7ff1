"""Standard deviation of the features, from which `flow.shift: auto` follows."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, distributed

from triptych.loss import REFERENCE_DIMENSION, dimension_shift


@torch.no_grad()
def measured_std(features: Tensor, over_ranks: bool) -> Tensor:
    """Standard deviation float64 [] of features [B,C,h,w] around the mean of each channel.

    The root of the mean over channels of their variances: constant offsets hold no information.

    Args:
        over_ranks: whether to measure the features of all ranks, which then must all call.
    """
    values = features.double()
    number = values.new_tensor([values[:, 0].numel()])
    sums, squares = values.sum((0, 2, 3)), values.square().sum((0, 2, 3))
    totals = torch.cat([number, sums, squares])
    if over_ranks and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(totals)
    number, rest = totals[0], totals[1:] / totals[0]
    mean, square = rest.chunk(2)
    return (square - mean.square()).mean().clamp_min(0).sqrt()


def say_shift(shape: tuple[int, int, int], std: float, known: bool) -> None:
    """Print the shift of `flow.shift: auto` with its parts, in one line of the first process."""
    channels, height, width = shape
    rank_zero_info(
        f"flow.shift auto: {float(dimension_shift(shape, std)):.3f} = sqrt(m/n) s, with "
        f"m = {channels * height * width} ({height}x{width} tokens of {channels} channels), "
        f"n = {REFERENCE_DIMENSION}, and the features' standard deviation s = {std:.4g}, "
        + ("which the encoder standardizes." if known else "measured and kept in the weights.")
    )
