"""Images as people have them, made into the squares that models take."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_headers import DAMAGED
from triptych.utils.image_modes import RANGE, SHAPE
from triptych.utils.image_reader import MISSING, NO_PIXELS, TOO_LONG, UNKNOWN, read_image
from triptych.utils.image_squares import square_image
from triptych.utils.image_urls import EXAMPLE, LINK, WRONG_DATA_URL, is_url

ImageInput = Image.Image | str | Path | bytes | np.ndarray | Tensor
"""All that `read_image` reads: an image in memory, its path, its file's bytes, or a data URL."""

REMEDIES = {
    RANGE: "convert it to 8 or 16 bits, or to floats from 0 to 1",
    SHAPE: "give one image at a time",
    UNKNOWN: "give a path, the bytes of a file, a data URL, a Pillow image, an array or a tensor",
    WRONG_DATA_URL: f"give {EXAMPLE}",
    NO_PIXELS: "give a whole one",
    TOO_LONG: "cut it into pieces",
}


def open_image(image: ImageInput) -> Image.Image:
    """The image, read whole, upright (a camera's orientation applied), in RGB.

    Raises:
        UserError: it does not exist, is not an image, is damaged, or is beyond `DEFAULT_LIMITS`.
    """
    try:
        return read_image(image)
    except ImageError as error:
        raise UserError(in_words(image, error)) from error


def in_words(image: ImageInput, error: ImageError) -> str:
    """The sentence of a command about an image that cannot be used."""
    named = isinstance(image, Path) or (isinstance(image, str) and not is_url(image))
    name = f"the image {image}" if named else "the image"
    if error.reason == MISSING:
        return f"{name} does not exist; check the path."
    if error.reason == DAMAGED:
        name = str(image) if named else name
        return (
            f"{name} is not an image that can be read ({error.detail}); give a whole PNG, JPEG or "
            "WebP."
        )
    if error.reason == LINK:
        return f"{name} {LINK}; download it and give its path, or give {EXAMPLE}"
    if error.reason in REMEDIES:
        return f"{name} {error}; {REMEDIES[error.reason]}."
    return f"{name} {error}; give a smaller or plainer one."


def square(image: Image.Image, size: int) -> Tensor:
    """The published transform, `square_image`, as uint8 [3,size,size]."""
    return image_to_tensor(square_image(image, size))


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3,H,W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_tensor(arrays: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H,W,3] each -> uint8 [B,3,H,W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_arrays(pixels: Tensor) -> np.ndarray:
    """uint8 [B,3,H,W] on any device -> uint8 [B,H,W,3]."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """uint8 [B,3,H,W] on any device -> RGB images."""
    return [Image.fromarray(each) for each in to_arrays(pixels)]


def stack_images(images: list[Tensor]) -> Tensor:
    """uint8 [3,H,W] each as [B,3,H,W], channels last in memory, as decoders leave them.

    `torch.stack` would bring the channels forward, a tenth of the time that an image of 512
    pixels takes to become a square of 448.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def pixels_to_unit(pixels: Tensor, size: int | None = None) -> Tensor:
    """uint8 [B,3,H,W] -> float32 in [-1,1]; the one place where images become numbers.

    `size` scales other images to [B,3,size,size], bicubic.
    """
    images = pixels.to(torch.float32) / 127.5 - 1.0
    return images if size is None else scaled(images, size, -1.0)


def scaled(images: Tensor, size: int, black: float, white: float = 1.0) -> Tensor:
    """float [B,3,H,W] from `black` to `white` -> [B,3,size,size], bicubic, cut off at these."""
    if images.shape[-2:] == (size, size):
        return images
    resized = nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(black, white)


def scaled_pixels(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B,3,H,W] -> uint8 [B,3,size,size], bicubic."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return scaled(pixels.float(), size, 0, 255).round().to(torch.uint8)


def unit_to_pixels(images: Tensor) -> Tensor:
    """float [B,3,H,W] in [-1,1] -> uint8, rounded and clamped."""
    return ((images.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def data_url(
    image: Image.Image | np.ndarray | bytes, file_format: str = "PNG", **saving: Any
) -> str:
    """A data URL that holds the image as a file.

    Args:
        image: an image, an array uint8 [H,W,3], or the bytes of a file of `file_format`.
        file_format: Pillow's name of the format.
        saving: Pillow's options of saving, such as `quality`.
    """
    if not isinstance(image, bytes):
        image = encode_image(image, file_format, **saving)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(image).decode()}"


def encode_image(image: Image.Image | np.ndarray, file_format: str, **saving: Any) -> bytes:
    """The bytes of an image file; the arguments are those of `data_url`."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **saving)
    return file.getvalue()
