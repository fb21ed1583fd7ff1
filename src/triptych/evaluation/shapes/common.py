"""What scores of the shapes world share: seeds, batches, pictures as arrays, shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from triptych.shapes_world.world import PIXELS
from triptych.utils.errors import UserError

WORLD_SEED = 0  # the seed of the shards that the recipes make
SEEDS = 1 << 20  # pictures of different `seed` share no noise


def to_tensor(pictures: Sequence[numpy.ndarray]) -> Tensor:
    """uint8 [H,W,3] each -> uint8 [B,3,H,W]."""
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def to_arrays(batches: Iterable[Tensor]) -> numpy.ndarray:
    """uint8 [B,3,48,48] each -> uint8 [N,48,48,3]."""
    pictures = numpy.concatenate([batch.permute(0, 2, 3, 1).cpu().numpy() for batch in batches])
    if pictures.shape[1:3] != (PIXELS, PIXELS):
        high, wide = pictures.shape[1:3]
        raise UserError(
            f"the shapes world is checked in pictures of {PIXELS}x{PIXELS} pixels, but the model "
            f"makes {wide}x{high}; use a model of that size, such as conf/model/tiny.yaml."
        )
    return pictures


def batches(number: int, batch_size: int) -> Iterable[range]:
    """The numbers from 0 to `number`, in runs of `batch_size`."""
    return (range(n, min(n + batch_size, number)) for n in range(0, number, batch_size))


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95% interval of a share that was seen in `number` independent trials (Wilson 1927)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    spread = share * (1 - share) / number + z2 / (4 * number**2)
    half = (z2 * spread) ** 0.5 / (1 + z2 / number)
    return max(0.0, middle - half), min(1.0, middle + half)
