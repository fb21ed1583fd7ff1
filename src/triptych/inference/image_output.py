"""Output of a call: Pillow images, an array or a tensor, with metadata of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from triptych.utils.errors import UserError
from triptych.utils.images import to_images
from triptych.utils.png_metadata import embed_metadata

OutputType = Literal["pil", "pt", "np"]


@dataclass
class ImageOutput(BaseOutput):
    """Output of `UnifiedPipeline` and of its `edit` and `reconstruct`.

    Also a mapping, like all outputs of diffusers.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    """A list of Pillow images, an array float32 [N,H,W,3] or a tensor float32 [N,3,H,W], in [0,1].
    A Pillow image saved as PNG contains its metadata."""
    metadata: list[dict[str, Any]]
    """One dictionary per image: prompt, seed, all generation settings, model and version."""


def check_output_type(output_type: str) -> None:
    """Check the output type.

    Raises:
        UserError: `output_type` is not one of `OutputType`.
    """
    if output_type not in get_args(OutputType):
        raise UserError(
            f"output_type is {output_type!r:.40}; choose from {', '.join(get_args(OutputType))}."
        )


def image_output(
    pixels: Tensor, metadata: list[dict[str, Any]], output_type: OutputType, return_dict: bool
) -> ImageOutput | tuple:
    """Convert images uint8 [N,3,H,W] to the output type of a call."""
    if output_type == "pil":
        pairs = zip(to_images(pixels), metadata, strict=True)
        images: Any = [embed_metadata(image, each) for image, each in pairs]
    else:
        images = pixels.to(torch.float32) / 255
        if output_type == "np":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
    output = ImageOutput(images=images, metadata=metadata)
    return output if return_dict else (output.images, output.metadata)
