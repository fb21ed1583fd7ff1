"""Image sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.inference.interleaved import most_images
from triptych.inference.pipeline import UnifiedPipeline


@dataclass
class ImageSizes:
    """Sides in pixels of a model's square images."""

    generated: int
    """Side of generated images."""
    edit_input: int
    """Side to which images are resized that are edited."""
    chat_input: int | None
    """Side to which images of conversations are resized; None keeps their shapes."""
    answer_images: int = 0
    """Maximum number of images in an answer, unless a request names another."""

    @classmethod
    def of(cls, pipeline: UnifiedPipeline) -> ImageSizes:
        """Return the sizes of a pipeline's model."""
        vlm = pipeline.model.understanding.vlm
        side = vlm.image_size
        example = torch.zeros(3, side, side, dtype=torch.uint8)
        squares = vlm.chat_inputs([example]) is None
        # the generator may see the image, too, at the encoder's size
        sees = pipeline.model.generation.takes_source
        edited = max(side, pipeline.model.image_size) if sees else side
        return cls(
            pipeline.model.vae.image_size,
            edited,
            edited if squares else None,
            most_images(pipeline.model),
        )
