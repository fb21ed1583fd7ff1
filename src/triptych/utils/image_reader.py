"""Reader of all images: paths, bytes, data URLs, tar shards, uploads, images in memory.

Formats are opened by their class, as `Image.open` tries formats that run other programs (EPS) and
has its own limit for large images. Sizes and hidden work are checked before decoding. The EXIF
orientation is applied, as by Hugging Face `datasets`, the reader of the published code, since 2024.
`image_modes` defines the conversion of depths and transparency.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from triptych.utils.documents import open_regular
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_headers import (
    DAMAGED,
    ORIENTATION,
    TOO_MANY_SCANS,
    check_bmp,
    check_png,
    count_gif_frames,
    count_scans,
    find_orientation,
)
from triptych.utils.image_modes import (
    OUTDATED,
    Alpha,
    from_array,
    is_array,
    scale_transparent_colour,
    to_rgb,
)
from triptych.utils.image_urls import is_url, read_data_url

MISSING = "does not exist"
UNKNOWN = "is not an image"
NO_PIXELS = "has no pixels"
TOO_MANY_PIXELS = "has too many pixels"
TOO_LARGE = "is too large"
TOO_LONG = "is too long for its width"
ANIMATED = "is animated"
SCANS_OF_LARGEST = 20  # maximum scans of an image of maximum size, more for a smaller one


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Skip: the resolution is unused, and EXIF of 64 kB can take hundreds of MB."""


@dataclass(frozen=True)
class _Format:
    start: bytes
    opened: Callable[[io.BytesIO], Image.Image]
    check: Callable[[bytes], int | None]


FORMATS = {
    "JPEG": _Format(b"\xff\xd8\xff", _Jpeg, count_scans),
    "PNG": _Format(b"\x89PNG", PngImagePlugin.PngImageFile, check_png),
    "WEBP": _Format(b"RIFF", WebPImagePlugin.WebPImageFile, lambda data: None),
    "GIF": _Format(b"GIF8", GifImagePlugin.GifImageFile, count_gif_frames),
    "BMP": _Format(b"BM", BmpImagePlugin.BmpImageFile, check_bmp),
}


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


FORMAT_NAMES = _either([*FORMATS])
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image, checked on its headers.

    Args:
        formats: permitted keys of FORMATS.
        max_bytes: maximum size of the file.
        max_pixels: maximum width times height; also limits the scans of a JPEG, see
            SCANS_OF_LARGEST.
        max_side: maximum of the longer side in pixels.
        max_aspect: maximum ratio of the sides: a thin image becomes huge when its short side is
            scaled to a square.
        animated: whether to read the first frame of an animated image instead of refusing it.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    max_bytes: int = 64 << 20
    max_pixels: int = 100_000_000
    max_side: int = 65_535
    max_aspect: int = 100
    animated: bool = True

    def check_size(self, width: int, height: int) -> None:
        """Refuse a size in pixels.

        Raises:
            ImageError: there are too many or none of them, or one side is too long.
        """
        if min(width, height) < 1:
            raise ImageError(NO_PIXELS, f"{width}x{height}")
        if width * height > self.max_pixels:
            raise ImageError(TOO_MANY_PIXELS, f"{width}x{height}, at most {self.max_pixels}")
        if max(width, height) > self.max_side:
            raise ImageError(
                TOO_MANY_PIXELS, f"{width}x{height}, at most {self.max_side} on a side"
            )
        if max(width, height) > self.max_aspect * min(width, height):
            raise ImageError(
                TOO_LONG, f"{width}x{height}, at most {self.max_aspect} times as long as wide"
            )

    def check_scans(self, scans: int, width: int, height: int) -> None:
        """Refuse a JPEG of many scans, each of which is a pass over all pixels.

        Raises:
            ImageError: there are too many of them for its size.
        """
        most = SCANS_OF_LARGEST * self.max_pixels // max(width * height, 1)
        if scans > most:
            raise ImageError(TOO_MANY_SCANS, f"{scans} of {width}x{height}, at most {most}")


DEFAULT_LIMITS = ImageLimits()


def read_image(
    image: Any, limits: ImageLimits = DEFAULT_LIMITS, alpha: Alpha = "white"
) -> Image.Image:
    """Read an image at its own size: upright, opaque, 8-bit RGB.

    Args:
        image: a path, the bytes of a file, a data URL, a Pillow image of any mode, or a NumPy array
            or tensor, see `from_array`.
        limits: limits of the image.
        alpha: treatment of transparency, see `Alpha`; "drop" is for parity with the published code.

    Raises:
        ImageError: it cannot be read, is damaged, or exceeds `limits`.
    """
    if is_array(image):
        image = from_array(image)
    if not isinstance(image, Image.Image):
        return upright_rgb(read_header(image, limits), alpha)
    limits.check_size(*image.size)
    scale_transparent_colour(image)
    decode(image)
    read = _turned_rgb(image, _orientation_in_memory(image), alpha)
    return read.copy() if read is image else read


def format_of(data: bytes) -> str | None:
    """Key of FORMATS of an encoded image, by its first bytes; None for other files."""
    return next((name for name, each in FORMATS.items() if data.startswith(each.start)), None)


def read_header(
    image: str | Path | bytes | bytearray | memoryview, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Open an image, with size, mode and metadata, without decoding it.

    Raises:
        ImageError: an error of `read_image`, except for damaged pixels.
    """
    data = _bytes_of(image, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise ImageError(TOO_LARGE, f"{len(data):,} bytes, at most {limits.max_bytes:,}")
    name = format_of(data)
    if name not in limits.formats:
        raise ImageError(DAMAGED, f"no {_either(limits.formats)}")
    found = FORMATS[name].check(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = FORMATS[name].opened(io.BytesIO(data))
    except Exception as error:  # plugins raise SyntaxError, struct.error, ... on damaged headers
        raise ImageError(DAMAGED, str(error)) from error
    limits.check_size(*header.size)
    if name == "JPEG":
        limits.check_scans(found, *header.size)
    scale_transparent_colour(header)
    moves = found == 2 if name == "GIF" else getattr(header, "is_animated", False)
    if moves and not limits.animated:
        raise ImageError(ANIMATED)
    return header


def upright_rgb(header: Image.Image, alpha: Alpha = "white") -> Image.Image:
    """Decode an image from `read_header`: upright, opaque, 8-bit RGB.

    Raises:
        ImageError: it is damaged.
    """
    decode(header)
    return _turned_rgb(header, find_orientation(header.info), alpha)


def _turned_rgb(image: Image.Image, orientation: int, alpha: Alpha) -> Image.Image:
    """Upright RGB image without orientation metadata; `image` itself if it already is one."""
    read, turn = to_rgb(image, alpha), TURNS.get(orientation)
    read = read if turn is None else read.transpose(turn)
    outdated = set(OUTDATED) & set(image.info)
    if outdated:
        read = read.copy() if read is image else read
    if read is not image:
        read.info = {name: value for name, value in image.info.items() if name not in OUTDATED}
    return read


def _orientation_in_memory(image: Image.Image) -> int:
    """EXIF orientation of a decoded Pillow image, from its file or set by `getexif`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is ignored; Pillow raises various exceptions
        return 1


def decode(header: Image.Image) -> None:
    """Decode in place, once.

    Raises:
        ImageError: it is damaged.
    """
    try:
        header.load()
    except Exception as error:  # mostly OSError, and various others
        raise ImageError(DAMAGED, str(error)) from error


def _bytes_of(image: Any, most: int) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and is_url(image):
        return read_data_url(image)
    if not isinstance(image, str | Path):
        raise ImageError(UNKNOWN, f"an object of type {type(image).__name__}")
    return _read_file(image, most)


def _read_file(path: str | Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        ImageError: the file does not exist, is larger, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ImageError(TOO_LARGE, f"{size:,} bytes, at most {most:,}")
            return file.read(most + 1)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ImageError(MISSING) from error
        why = getattr(error.__cause__, "strerror", None) or "not a regular file"
        raise ImageError(DAMAGED, why) from error
    except OSError as error:
        raise ImageError(DAMAGED, error.strerror or str(error)) from error
