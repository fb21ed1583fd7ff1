"""Pictures as people have them, made into the squares that models take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from triptych.utils.errors import PictureError, UserError
from triptych.utils.image_headers import DAMAGED
from triptych.utils.image_modes import RANGE, SHAPE
from triptych.utils.image_reader import MISSING, NO_PIXELS, TOO_LONG, UNKNOWN, read_image
from triptych.utils.image_squares import square_image
from triptych.utils.image_urls import EXAMPLE, LINK, WRONG_DATA_URL, is_url

Picture = Image.Image | str | Path | bytes | np.ndarray | Tensor
"""All that `read_image` reads: an image in memory, its path, its file's bytes, or a data URL."""

REMEDIES = {
    RANGE: "convert it to 8 or 16 bits, or to floats from 0 to 1",
    SHAPE: "give one image at a time",
    UNKNOWN: "give a path, the bytes of a file, a data URL, a Pillow image, an array or a tensor",
    WRONG_DATA_URL: f"give {EXAMPLE}",
    NO_PIXELS: "give a whole one",
    TOO_LONG: "cut it into pieces",
}


def open_picture(picture: Picture) -> Image.Image:
    """The picture, read whole, upright (a camera's orientation applied), in RGB.

    Raises:
        UserError: it does not exist, is no picture, is damaged, or is beyond `DEFAULT_LIMITS`.
    """
    try:
        return read_image(picture)
    except PictureError as error:
        raise UserError(in_words(picture, error)) from error


def in_words(picture: Picture, error: PictureError) -> str:
    """The sentence of a command about a picture that cannot be used."""
    named = isinstance(picture, Path) or (isinstance(picture, str) and not is_url(picture))
    name = f"the picture {picture}" if named else "the picture"
    if error.reason == MISSING:
        return f"{name} does not exist; check the path."
    if error.reason == DAMAGED:
        name = str(picture) if named else name
        return (
            f"{name} is no picture that can be read ({error.detail}); "
            "give a whole PNG, JPEG or WebP."
        )
    if error.reason == LINK:
        return f"{name} {LINK}; download it and give its path, or give {EXAMPLE}"
    if error.reason in REMEDIES:
        return f"{name} {error}; {REMEDIES[error.reason]}."
    return f"{name} {error}; give a smaller or plainer one."


def square(picture: Image.Image, size: int) -> Tensor:
    """The published transform, `square_image`, as uint8 [3,size,size]."""
    return torch.from_numpy(np.array(square_image(picture, size))).permute(2, 0, 1)


def stack_pictures(pictures: list[Tensor]) -> Tensor:
    """uint8 [3,H,W] each as [B,3,H,W], channels last in memory, as decoders leave them.

    `torch.stack` would bring the channels forward, a tenth of the time that a picture of 512
    pixels takes to become a square of 448.
    """
    return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)


def pixels_to_unit(pixels: Tensor, size: int | None = None) -> Tensor:
    """uint8 [B,3,H,W] -> float32 in [-1,1]; the one place where pictures become numbers.

    `size` scales other pictures to [B,3,size,size], bicubic.
    """
    images = pixels.to(torch.float32) / 127.5 - 1.0
    return images if size is None else scaled(images, size, -1.0)


def scaled(images: Tensor, size: int, black: float) -> Tensor:
    """float [B,3,H,W] from `black` to 1 -> [B,3,size,size], bicubic, cut off at the same ends."""
    if images.shape[-2:] == (size, size):
        return images
    shape = (size, size)
    return nn.functional.interpolate(images, shape, mode="bicubic", antialias=True).clamp(black, 1)


def unit_to_pixels(images: Tensor) -> Tensor:
    """float [B,3,H,W] in [-1,1] -> uint8, rounded and clamped."""
    return ((images.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
