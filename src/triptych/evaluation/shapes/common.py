"""Settings, seeds, batches and arrays, shared by all scores of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy
from torch import Tensor

from triptych.inference.generation_config import GenerationConfig, settings_alone
from triptych.interfaces import Evaluator
from triptych.shapes_world.world import PIXELS
from triptych.utils.errors import UserError
from triptych.utils.images import to_arrays

WORLD_SEED = 0  # the seed of the shards that the recipes make
SEEDS = 1 << 20  # images of different `seed` share no noise


@dataclass(frozen=True)
class ImageOptions:
    """Settings of the images that a score makes."""

    batch_size: int = 64
    seed: int = 0
    config: GenerationConfig | None = None
    numbers: Sequence[int] | None = None
    """Numbers of the samples, from 0 on if None; their noise follows from `seed` and these."""


class ShapesEvaluator(Evaluator):
    """A score of images that the model makes, one for each caption or instruction.

    Args:
        num_images: number of images.
        seed: seed of their noise.
        batch_size: number of images at a time.
        generation_config: settings of the images, see `GenerationConfig`; its seed stays null.
    """

    parts = ("understanding", "generation", "decoding")

    def __init__(
        self,
        num_images: int,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.num_images, self.seed, self.batch_size = num_images, seed, batch_size
        self.generation_config = settings_alone(generation_config)

    @property
    def options(self) -> ImageOptions:
        """Settings for the functions that make the images."""
        return ImageOptions(self.batch_size, self.seed, self.generation_config)


def make_in_batches(
    make: Callable[[range, list[int]], Tensor], images: int, options: ImageOptions
) -> numpy.ndarray:
    """Images uint8 [N,48,48,3] that `make(places, seeds)` makes, uint8 [B,3,48,48] at a time."""
    numbers = range(images) if options.numbers is None else options.numbers
    return world_arrays(
        make(batch, [options.seed * SEEDS + numbers[n] for n in batch])
        for batch in batches(images, options.batch_size)
    )


def world_arrays(batches: Iterable[Tensor]) -> numpy.ndarray:
    """uint8 [B,3,48,48] each -> uint8 [N,48,48,3]."""
    images = numpy.concatenate([to_arrays(batch) for batch in batches])
    if images.shape[1:3] != (PIXELS, PIXELS):
        high, wide = images.shape[1:3]
        raise UserError(
            f"the shapes world is checked in images of {PIXELS}x{PIXELS} pixels, but the model "
            f"makes {wide}x{high}; use a model of that size, such as conf/presets/tiny.yaml."
        )
    return images


def batches(number: int, batch_size: int) -> Iterable[range]:
    """The numbers from 0 to `number`, in runs of `batch_size`."""
    return (range(n, min(n + batch_size, number)) for n in range(0, number, batch_size))
