"""Opening, scaling and conversion of images for models."""

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
"""Inputs of `read_image`: an image in memory, a path, bytes of a file, or a data URL."""

REMEDIES = {
    RANGE: "convert it to 8 or 16 bits, or to floats from 0 to 1",
    SHAPE: "give one image at a time",
    UNKNOWN: "give a path, the bytes of a file, a data URL, a Pillow image, an array or a tensor",
    WRONG_DATA_URL: f"give {EXAMPLE}",
    NO_PIXELS: "give a whole one",
    TOO_LONG: "cut it into pieces",
}


def open_image(image: ImageInput) -> Image.Image:
    """Read an image as RGB, with its EXIF orientation applied.

    Raises:
        UserError: it does not exist, is not an image, is damaged, or exceeds `DEFAULT_LIMITS`.
    """
    try:
        return read_image(image)
    except ImageError as error:
        raise UserError(in_words(image, error)) from error


def in_words(image: ImageInput, error: ImageError) -> str:
    """Error message about an image that cannot be used."""
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
    """Apply the published transform, `square_image`; returns uint8 [3,size,size]."""
    return image_to_tensor(square_image(image, size))


def image_to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to uint8 [3,H,W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_tensor(arrays: Sequence[np.ndarray]) -> Tensor:
    """Convert arrays uint8 [H,W,3] to uint8 [B,3,H,W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_arrays(pixels: Tensor) -> np.ndarray:
    """Convert uint8 [B,3,H,W] on any device to an array uint8 [B,H,W,3]."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Convert uint8 [B,3,H,W] on any device to RGB images."""
    return [Image.fromarray(each) for each in to_arrays(pixels)]


def stack_images(images: list[Tensor]) -> Tensor:
    """Stack images uint8 [3,H,W] to [B,3,H,W], with channels last in memory, as decoders do.

    `torch.stack` would transpose the channels, which takes a tenth of the time of scaling an image
    of 512 pixels to a square of 448.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def pixels_to_unit(pixels: Tensor, size: int | None = None) -> Tensor:
    """Convert uint8 [B,3,H,W] to float32 in [-1,1], scaled bicubically to `size` if given."""
    images = pixels.to(torch.float32) / 127.5 - 1.0
    return images if size is None else scaled(images, size, -1.0)


def scaled(images: Tensor, size: int, black: float, white: float = 1.0) -> Tensor:
    """Scale float [B,3,H,W] bicubically to [B,3,size,size], clamped to [`black`, `white`]."""
    if images.shape[-2:] == (size, size):
        return images
    resized = nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(black, white)


def scaled_pixels(pixels: Tensor, size: int) -> Tensor:
    """Scale uint8 [B,3,H,W] bicubically to uint8 [B,3,size,size]."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return scaled(pixels.float(), size, 0, 255).round().to(torch.uint8)


def unit_to_pixels(images: Tensor) -> Tensor:
    """Convert float [B,3,H,W] in [-1,1] to uint8, rounded and clamped."""
    return ((images.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def data_url(
    image: Image.Image | np.ndarray | bytes, file_format: str = "PNG", **saving: Any
) -> str:
    """Encode an image as a data URL.

    Args:
        image: an image, an array uint8 [H,W,3], or the bytes of a file of `file_format`.
        file_format: Pillow's name of the format.
        saving: options of Pillow's `save`, such as `quality`.
    """
    if not isinstance(image, bytes):
        image = encode_image(image, file_format, **saving)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(image).decode()}"


def encode_image(image: Image.Image | np.ndarray, file_format: str, **saving: Any) -> bytes:
    """Encode an image file; the arguments are those of `data_url`."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **saving)
    return file.getvalue()
