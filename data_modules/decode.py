"""Encoded images to the squares that models take: uint8 [3,size,size], decoded once.

The reader of `triptych.utils.image_reader` judges and decodes them; large JPEGs go past Pillow
where simplejpeg is installed.
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
SLOWER = (
    "JPEGs are decoded by Pillow; run `pip install 'triptych[fast]'` and batches of them take a "
    "tenth to a fifth less time."
)


@dataclass(frozen=True)
class Decoder:
    """Decodes one image to squares of one or several sizes.

    Args:
        backend: "pillow" is the published transform, call by call: it drops the alpha channel, so
            transparent pixels show the colours they hide. "torchvision" composites them over white
            and takes about a third of the time: libjpeg-turbo decodes JPEG, torch's vector code
            scales. By rounding it differs on average by 0.005 to 0.03 of 255, and by up to 0.3 for
            some images that are more than twice as high as wide. A JPEG of at least twice the
            requested side is decoded at a half, a quarter or an eighth where that divides
            its sides: of photographs that differs by 0.2 to 1.5 of 255, about what quality 85 took
            from them.
        max_pixels: width times height of the largest image that is decoded.
    """

    backend: ImageBackend = "torchvision"
    max_pixels: int = DEFAULT_LIMITS.max_pixels

    def __call__(self, data: bytes, *sizes: int) -> list[Tensor]:
        """The image as uint8 [3,size,size] for each of `sizes`, decoded once.

        Raises:
            ImageError: it is damaged, or beyond `limits`.
        """
        header = self._header(data)
        places = [place_of_square(*upright_shape(header), size) for size in sizes]
        if self.backend == "pillow":
            image = upright_rgb(header, alpha="drop")
            return [square(image, size) for size in sizes]
        pixels = pixels_of(data, header, max(sizes))
        squares = {
            size: cut(pixels, *place, size) for size, place in zip(sizes, places, strict=True)
        }
        return [squares[size] for size in sizes]

    def whole(self, data: bytes) -> Image.Image:
        """The image at its own size, RGB; transparency as in the squares.

        Raises:
            ImageError: it is damaged, or beyond `limits`.
        """
        if self.backend == "pillow":
            return upright_rgb(self._header(data), alpha="drop")
        return read_image(data, self.limits)

    def _header(self, data: bytes) -> Image.Image:
        header = read_header(data, self.limits)
        if header.format != "JPEG":  # how a PNG is turned may stand at its end
            decode(header)
        return header

    @property
    def hint(self) -> str:
        """Advice to read images faster; "" if they already are."""
        return SLOWER if self.backend == "torchvision" and fast_jpeg() is None else ""

    @property
    def limits(self) -> ImageLimits:
        """Limits of the images of a data set."""
        return ImageLimits(max_pixels=self.max_pixels)


@cache
def fast_jpeg() -> Callable[..., np.ndarray] | None:
    """The decoder of simplejpeg: libjpeg-turbo, which goes from bytes to an array at once.

    None where it is not installed. Looked for at the first image, not when this is imported.
    """
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg


def upright_shape(header: Image.Image) -> tuple[int, int]:
    """(height, width) of the image once it is turned."""
    width, height = header.size
    return (width, height) if find_orientation(header.info) in (5, 6, 7, 8) else (height, width)


def pixels_of(data: bytes, header: Image.Image, size: int) -> Tensor:
    """uint8 [3,H,W] of at least `size`, or whole; channels last in memory, upright.

    JPEG does not go through torchvision, whose decoder (0.29) has no reduced sizes; on a PNG with a
    wrong checksum that one ends the process.
    """
    if header.format == "JPEG" and header.mode in ("RGB", "L"):
        width, height = (side // reduction_of(header, size) for side in header.size)
        if decode_jpeg := fast_jpeg():
            try:
                pixels = decode_jpeg(data, "RGB", min_height=height, min_width=width)
                turn = find_orientation(header.info)
                return upright(torch.from_numpy(pixels).permute(2, 0, 1), turn)
            except ValueError:
                pass  # Pillow reads it, or says what is wrong with it
        else:
            header.draft(header.mode, (width, height))
    return torch.from_numpy(np.array(upright_rgb(header))).permute(2, 0, 1)


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """[3,H,W] turned and mirrored as an EXIF orientation says; others than 2 to 8 are upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels


def reduction_of(header: Image.Image, size: int) -> int:
    """By how much a JPEG is made smaller while it is decoded, so that `size` is left.

    Only if that divides both sides: libjpeg fills up a last block that is not whole, and what is
    then scaled is a little wider than the image.
    """
    return next(
        (
            by
            for by in (8, 4, 2)
            if min(header.size) >= size * by and not any(side % by for side in header.size)
        ),
        1,
    )


def cut(pixels: Tensor, scaled: tuple[int, int], top: int, left: int, size: int) -> Tensor:
    """uint8 [3,H,W], scaled, its square of `size` at (top, left)."""
    pixels = resize_image(pixels, list(scaled), InterpolationMode.BICUBIC, antialias=True)
    return pixels[:, top : top + size, left : left + size]
