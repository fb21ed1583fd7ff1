"""Encoded pictures to the squares that models take: uint8 [3,size,size], decoded once.

Only JPEG, PNG and WebP are ever opened, and the size in the header is judged before anything is
decoded. Pictures are turned as their EXIF orientation says, as Hugging Face `datasets`, which the
published code reads its pictures with, does since 2024; alpha channels and palettes' transparency
are dropped, as "RGB" conversion by pillow does.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from simplejpeg import decode_jpeg
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from triptych.pictures import square
from triptych.squares import place_of_square

DecodeWay = Literal["torchvision", "pillow"]
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
# Opened by their class, as Image.open tries formats that run other programs (EPS), and warns of
# or refuses large pictures by a limit of its own.
FORMATS = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}


class PictureError(ValueError):
    """A picture that cannot be used.

    Args:
        reason: what follows "the picture": "is damaged".
        detail: what else helps to find the cause.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoder:
    """Decodes one picture to squares of one or several sizes.

    Args:
        way: "pillow" is the published transform, call by call. "torchvision" takes about a third of
            the time: libjpeg-turbo decodes JPEG, torch's vector code scales. By rounding it differs
            on average by 0.005 to 0.03 of 255, and by up to 0.3 for some pictures that are more
            than twice as high as wide. A JPEG of at least twice the side that is asked for is
            decoded at a half, a quarter or an eighth where that divides its sides: of photographs
            that differs by 0.2 to 1.5 of 255, about what quality 85 took from them.
        max_pixels: width times height of the largest picture that is decoded, or scaled to: a
            strip of 2x50000 pixels, its short side brought to 448, has 5 billion.
    """

    way: DecodeWay = "torchvision"
    max_pixels: int = 100_000_000

    def __call__(self, data: bytes, *sizes: int) -> list[Tensor]:
        """The picture as uint8 [3,size,size] for each of `sizes`, decoded once.

        Raises:
            PictureError: it is damaged, or has more than `max_pixels`.
        """
        header = read_header(data, self.max_pixels)
        if header.format != "JPEG":  # how a PNG is turned may stand at its end
            decode(header)
        places = [place_of_square(*upright_shape(header), size) for size in sizes]
        for (height, width), *_ in places:
            refuse_more(width, height, self.max_pixels)
        if self.way == "pillow":
            picture = load(header)
            return [square(picture, size) for size in sizes]
        pixels = pixels_of(data, header, max(sizes))
        squares = {
            size: cut(pixels, *place, size) for size, place in zip(sizes, places, strict=True)
        }
        return [squares[size] for size in sizes]


def read_picture(data: bytes, max_pixels: int = Decoder.max_pixels) -> Image.Image:
    """The picture at its own size, upright, RGB.

    Raises:
        PictureError: it is damaged, or has more than `max_pixels`.
    """
    return load(read_header(data, max_pixels))


def read_header(data: bytes, max_pixels: int) -> Image.Image:
    """The picture with its size and mode known, and nothing decoded.

    Raises:
        PictureError: it is no JPEG, PNG or WebP, or has more than `max_pixels`.
    """
    opened = next((FORMATS[start] for start in FORMATS if data.startswith(start)), None)
    if opened is None:
        raise PictureError("is damaged", "no JPEG, PNG or WebP")
    try:
        picture = opened(io.BytesIO(data))
    except Exception as error:  # plugins raise SyntaxError, struct.error, ... on damaged headers
        raise PictureError("is damaged", str(error)) from error
    refuse_more(*picture.size, max_pixels)
    return picture


def refuse_more(width: int, height: int, max_pixels: int) -> None:
    """Raise PictureError for more pixels than `max_pixels`."""
    if width * height > max_pixels:
        raise PictureError("has too many pixels", f"{width}x{height}, at most {max_pixels}")


def load(header: Image.Image) -> Image.Image:
    """Decode what `read_header` opened: upright, RGB."""
    decode(header)
    try:
        upright = header if orientation(header) == 1 else ImageOps.exif_transpose(header)
    except Exception as error:  # it also writes the other tags anew, whatever is in them
        raise PictureError("is damaged", f"EXIF: {error}") from error
    with warnings.catch_warnings():  # of transparency that "RGB" has no room for
        warnings.simplefilter("ignore", UserWarning)
        return upright.convert("RGB")


def decode(header: Image.Image) -> None:
    """Decode in place; once it is done, nothing."""
    try:
        header.load()
    except Exception as error:  # OSError mostly, and whatever else damage provokes
        raise PictureError("is damaged", str(error)) from error


def orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; upright where damaged EXIF does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF in a wrong encoding raises UnicodeDecodeError, for one
        return 1


def upright_shape(header: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture once it is turned."""
    width, height = header.size
    return (width, height) if orientation(header) in (5, 6, 7, 8) else (height, width)


def pixels_of(data: bytes, header: Image.Image, size: int) -> Tensor:
    """uint8 [3,H,W] of at least `size`, or whole; channels last in memory, upright.

    Only JPEG goes past pillow, and not through torchvision, whose decoder (0.29) has no reduced
    sizes; on a PNG with a wrong checksum that one ends the process.
    """
    if header.format == "JPEG" and header.mode in ("RGB", "L"):
        width, height = (side // reduction_of(header, size) for side in header.size)
        try:
            pixels = decode_jpeg(data, "RGB", min_height=height, min_width=width)
            return upright(torch.from_numpy(pixels).permute(2, 0, 1), orientation(header))
        except ValueError:
            pass  # pillow reads it, or says what is wrong with it
    return torch.from_numpy(np.array(load(header))).permute(2, 0, 1)


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """[3,H,W] turned and mirrored as an EXIF orientation says; others than 2 to 8 are upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels


def reduction_of(header: Image.Image, size: int) -> int:
    """By how much a JPEG is made smaller while it is decoded, so that `size` is left.

    Only if that divides both sides: libjpeg fills up a last block that is not whole, and what is
    then scaled is a little wider than the picture.
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
