"""Seeds, batches and arrays, shared by all scores of the shapes world."""

from __future__ import annotations

from collections.abc import Iterable

import numpy
from torch import Tensor

from triptych.shapes_world.world import PIXELS
from triptych.utils.errors import UserError
from triptych.utils.images import to_arrays

WORLD_SEED = 0  # the seed of the shards that the recipes make
SEEDS = 1 << 20  # pictures of different `seed` share no noise


def world_arrays(batches: Iterable[Tensor]) -> numpy.ndarray:
    """uint8 [B,3,48,48] each -> uint8 [N,48,48,3]."""
    pictures = numpy.concatenate([to_arrays(batch) for batch in batches])
    if pictures.shape[1:3] != (PIXELS, PIXELS):
        high, wide = pictures.shape[1:3]
        raise UserError(
            f"the shapes world is checked in pictures of {PIXELS}x{PIXELS} pixels, but the model "
            f"makes {wide}x{high}; use a model of that size, such as conf/presets/tiny.yaml."
        )
    return pictures


def batches(number: int, batch_size: int) -> Iterable[range]:
    """The numbers from 0 to `number`, in runs of `batch_size`."""
    return (range(n, min(n + batch_size, number)) for n in range(0, number, batch_size))
