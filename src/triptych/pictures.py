"""Pictures as people have them, made into the squares that models take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from triptych.contracts import UserError
from triptych.squares import square_image

Picture = Image.Image | str | Path
"""A picture, or the path of one."""


def open_picture(picture: Picture) -> Image.Image:
    """The picture, read whole, upright (a camera's orientation applied), in RGB.

    Raises:
        UserError: it does not exist, is no picture, or is damaged.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"the picture {picture} does not exist; check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{picture} is no picture that can be read ({error}); give a whole PNG, JPEG or WebP."
        ) from error


def square(picture: Image.Image, size: int) -> Tensor:
    """The published transform, `square_image`, as uint8 [3,size,size]."""
    return torch.from_numpy(np.array(square_image(picture, size))).permute(2, 0, 1)


def stack_pictures(pictures: list[Tensor]) -> Tensor:
    """uint8 [3,H,W] each as [B,3,H,W], channels last in memory, as decoders leave them.

    `torch.stack` would bring the channels forward, a tenth of the time that a picture of 512
    pixels takes to become a square of 448.
    """
    return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)
