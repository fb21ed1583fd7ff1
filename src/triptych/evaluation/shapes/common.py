"""Settings, seeds, batches and arrays shared by all scores of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy
from torch import Tensor

from triptych.evaluation.image_evaluator import ImageEvaluator
from triptych.inference.generation_config import GenerationConfig
from triptych.shapes_world.world import PIXELS
from triptych.utils.errors import UserError
from triptych.utils.images import to_arrays

WORLD_SEED = 0  # seed of the shards that the recipes generate
SEEDS = 1 << 20  # images of different `seed` share no noise


@dataclass(frozen=True)
class ImageOptions:
    """Settings of the images that a score is computed from."""

    batch_size: int = 64
    seed: int = 0
    config: GenerationConfig | None = None
    numbers: Sequence[int] | None = None
    """Sample numbers, counted from 0 if None; the noise follows from `seed` and these."""


class ShapesEvaluator(ImageEvaluator):
    """A score of images of the shapes world, read by its checker."""

    @property
    def options(self) -> ImageOptions:
        """Settings for the functions that generate the images."""
        return ImageOptions(self.batch_size, self.seed, self.generation_config)


def generate_in_batches(
    generate: Callable[[range, list[int]], Tensor], num_images: int, options: ImageOptions
) -> numpy.ndarray:
    """Images uint8 [N,48,48,3] from calls of `generate(indices, seeds)` -> uint8 [B,3,48,48]."""
    numbers = range(num_images) if options.numbers is None else options.numbers
    return world_arrays(
        generate(batch, [options.seed * SEEDS + numbers[n] for n in batch])
        for batch in batches(num_images, options.batch_size)
    )


def world_arrays(batches: Iterable[Tensor]) -> numpy.ndarray:
    """Concatenate batches uint8 [B,3,48,48] to an array uint8 [N,48,48,3].

    Raises:
        UserError: the images have another size.
    """
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
