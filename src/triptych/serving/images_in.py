"""Pictures that clients send: read once, checked before anything is unpacked, kept small."""

from __future__ import annotations

import base64
import binascii
import re
import warnings
from io import BytesIO

from PIL import Image, ImageOps

from triptych.serving.problems import Problem, wrong
from triptych.squares import square_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MOST_PIXELS = 2**24
"""4096 x 4096, or 64 MB while it is read."""
LONGEST_SIDE = 16_384
MOST_STRETCH = 32
"""Long side over short side: a thin line becomes huge when its short side is enlarged."""
DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]+;base64,", re.ASCII)


def read_picture(data: bytes, size: int | None, param: str) -> Image.Image:
    """The picture in a file, upright, RGB.

    Args:
        size: the side in pixels of the squares that the model sees; the rest of the picture is let
            go, so that what waits in the queue is small. None: it sees pictures in their shapes.

    Raises:
        Problem: 400; it is no picture, a damaged, a moving or a too large one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            opened = Image.open(BytesIO(data), formats=FORMATS)
            _check(opened, param)
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            if size is None:
                return upright
            return square_image(upright, size)
    except Problem:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file led them to
        raise _damaged(param) from error


def _check(picture: Image.Image, param: str) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise wrong(
            param,
            f"{param}: the picture has {width} x {height} pixels; send at most "
            f"{MOST_PIXELS // 1_000_000} million, and {LONGEST_SIDE} a side.",
            "image_too_large",
        )
    if max(width, height) > MOST_STRETCH * min(width, height):
        raise wrong(
            param,
            f"{param}: the picture has {width} x {height} pixels; send one that is at most "
            f"{MOST_STRETCH} times as long as wide.",
            "image_too_thin",
        )
    # A camera's JPEG may hold a second, small picture (MPO); its first is what is meant.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise wrong(param, f"{param}: the picture moves; send a single one.", "animated_image")


def _damaged(param: str) -> Problem:
    return wrong(
        param,
        f"{param}: this is no picture that can be read; send a whole PNG, JPEG, WebP or GIF.",
        "invalid_image",
    )


def read_data_url(url: str, param: str) -> bytes:
    """The file that a data: URL holds.

    Raises:
        Problem: 400; it is another kind of URL, which this server does not fetch, or not base64.
    """
    head = DATA_URL.match(url)
    if head is None:
        raise wrong(
            param,
            f"{param}: this server fetches no pictures; send data:image/png;base64,... instead.",
            "unsupported_image_url",
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(param, f"{param}: what follows base64, is not base64.") from error
