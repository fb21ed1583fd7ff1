"""Base of the evaluators that score images which the model generates."""

from __future__ import annotations

from triptych.inference.generation_config import GenerationConfig, without_call_fields
from triptych.interfaces import Evaluator


class ImageEvaluator(Evaluator):
    """A score of generated images, one for each caption or instruction.

    Args:
        num_images: number of images.
        seed: random seed of their noise.
        batch_size: number of images generated at a time.
        generation_config: generation settings, see `GenerationConfig`; its seed stays null.
    """

    parts = ("language_model", "generation", "decoding")

    def __init__(
        self,
        num_images: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.num_images, self.seed, self.batch_size = num_images, seed, batch_size
        self.generation_config = without_call_fields(generation_config)
