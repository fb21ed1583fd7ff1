"""Decodes images to the squares that models take: uint8 [3,size,size].

`triptych.utils.image_reader` checks and decodes them; simplejpeg decodes large JPEGs if it is
installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from triptych.utils.image_headers import find_orientation
from triptych.utils.image_reader import (
    DEFAULT_LIMITS,
    ImageLimits,
    decode,
    read_header,
    read_image,
    upright_rgb,
)
from triptych.utils.image_squares import place_of_square
from triptych.utils.images import square

ImageBackend = Literal["torchvision", "pillow"]
SLOW_JPEG_HINT = (
    "JPEGs are decoded by Pillow; run `pip install 'triptych[fast]'` and batches of them take a "
    "tenth to a fifth less time."
)


@dataclass(frozen=True)
class Decoder:
    """Decodes one image to squares of one or several sizes.

    Args:
        backend: library of the transform. "pillow" is the published one, call by call: it drops the
            alpha channel, so that transparent pixels show their hidden colours. "torchvision"
            composites them over white and takes about a third of the time: libjpeg-turbo decodes
            JPEG, torch's vectorized code scales. By rounding it differs on average by 0.005 to 0.03
            of 255, and by up to 0.3 for some images that are more than twice as high as wide. A
            JPEG of at least twice the requested side is decoded at a half, a quarter or an eighth
            if that divides its sides: for photographs this differs by 0.2 to 1.5 of 255, about the
            loss of JPEG quality 85.
        max_pixels: maximum number of pixels (width times height) of an image.
    """

    backend: ImageBackend = "torchvision"
    max_pixels: int = DEFAULT_LIMITS.max_pixels

    def __call__(self, data: bytes, *sizes: int) -> list[Tensor]:
        """Decode an image once; return it as uint8 [3,size,size] for each of `sizes`.

        Raises:
            ImageError: the image is damaged, or beyond `limits`.
        """
        header = self._header(data)
        places = [place_of_square(*upright_shape(header), size) for size in sizes]
        if self.backend == "pillow":
            image = upright_rgb(header, alpha="drop")
            return [square(image, size) for size in sizes]
        pixels = decode_pixels(data, header, max(sizes))
        squares = {
            size: resize_and_crop(pixels, *place, size)
            for size, place in zip(sizes, places, strict=True)
        }
        return [squares[size] for size in sizes]

    def decode_full(self, data: bytes) -> Image.Image:
        """Decode an image at its full size, RGB; transparency as in the squares.

        Raises:
            ImageError: the image is damaged, or beyond `limits`.
        """
        if self.backend == "pillow":
            return upright_rgb(self._header(data), alpha="drop")
        return read_image(data, self.limits)

    def _header(self, data: bytes) -> Image.Image:
        header = read_header(data, self.limits)
        if header.format != "JPEG":  # the orientation of a PNG may be stored at its end
            decode(header)
        return header

    @property
    def hint(self) -> str:
        """Advice to decode JPEGs faster; "" if there is none."""
        return SLOW_JPEG_HINT if self.backend == "torchvision" and fast_jpeg() is None else ""

    @property
    def limits(self) -> ImageLimits:
        """Limits of an image."""
        return ImageLimits(max_pixels=self.max_pixels)


@cache
def fast_jpeg() -> Callable[..., np.ndarray] | None:
    """JPEG decoder of simplejpeg (libjpeg-turbo, from bytes to an array); None if not installed.

    Imported at the first image.
    """
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg


def upright_shape(header: Image.Image) -> tuple[int, int]:
    """(height, width) of an image after its EXIF rotation."""
    width, height = header.size
    return (width, height) if find_orientation(header.info) in (5, 6, 7, 8) else (height, width)


def decode_pixels(data: bytes, header: Image.Image, size: int) -> Tensor:
    """Decode to uint8 [3,H,W] with sides of at least `size` or full size; upright, channels last.

    JPEGs are not decoded by torchvision (0.29), which has no reduced sizes; on a PNG with a wrong
    checksum its decoder ends the process.
    """
    if header.format == "JPEG" and header.mode in ("RGB", "L"):
        width, height = (side // jpeg_reduction(header, size) for side in header.size)
        if decode_jpeg := fast_jpeg():
            try:
                pixels = decode_jpeg(data, "RGB", min_height=height, min_width=width)
                orientation = find_orientation(header.info)
                return upright(torch.from_numpy(pixels).permute(2, 0, 1), orientation)
            except ValueError:
                pass  # Pillow decodes it, or raises with the reason
        else:
            header.draft(header.mode, (width, height))
    return torch.from_numpy(np.array(upright_rgb(header))).permute(2, 0, 1)


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Rotate and mirror [3,H,W] by its EXIF orientation; one outside of 2 to 8 is upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels


def jpeg_reduction(header: Image.Image, size: int) -> int:
    """Factor by which libjpeg reduces a JPEG while decoding, to sides of at least `size`.

    It divides both sides: libjpeg pads an incomplete last block, and the result would be a little
    wider than the image.
    """
    return next(
        (
            factor
            for factor in (8, 4, 2)
            if min(header.size) >= size * factor and not any(side % factor for side in header.size)
        ),
        1,
    )


def resize_and_crop(
    pixels: Tensor, scaled: tuple[int, int], top: int, left: int, size: int
) -> Tensor:
    """Scale uint8 [3,H,W], and crop the square of `size` at (top, left)."""
    pixels = resize_image(pixels, list(scaled), InterpolationMode.BICUBIC, antialias=True)
    return pixels[:, top : top + size, left : left + size]
