"""ImageSizes to which the images of a model are brought."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.inference.pipeline import UnifiedPipeline


@dataclass
class ImageSizes:
    """Sides in pixels of a model's images, which are squares."""

    made: int
    edited: int
    """To which images are brought that it changes."""
    shown: int | None
    """To which images of conversations are brought; None leaves them their shapes."""

    @classmethod
    def of(cls, pipeline: UnifiedPipeline) -> ImageSizes:
        """Those of a pipeline's model."""
        understander = pipeline.model.understanding.understander
        side = understander.image_size
        example = torch.zeros(3, side, side, dtype=torch.uint8)
        squares = understander.chat_inputs([example]) is None
        return cls(pipeline.model.vae.image_size, side, side if squares else None)
