"""Conversion of pixels of any mode and depth to 8-bit RGB.

Ranges by type:

- 8 bits (and 1 bit) are unchanged; unsigned 16 bits are divided by 257 and rounded;
- other integers (Pillow's "I", int32, whole floats above 1) are 8-bit if none is above 255, like in
  Pillow's own conversion, and 16-bit if none is above 65,535;
- floats from 0 to 1 are multiplied by 255 and rounded;
- others are refused; nothing is clipped.

Transparent pixels are composited over white. The published code drops the alpha channel, which
shows hidden colours: `alpha="drop"`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from triptych.utils.errors import ImageError
from triptych.utils.image_headers import DAMAGED

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: `--help` needs none

Alpha = Literal["white", "drop"]
"""Treatment of transparent pixels: composited over white, or opaque in their hidden colour."""

RANGE = "has pixels of an unknown range"
SHAPE = "is not of the shape of an image"
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Metadata that no longer holds once an image is upright and opaque.
OUTDATED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp", "transparency")
GREY_LEVELS = {"L;2": 85, "L;4": 17}  # raw modes of PNG: 255 over their largest number


def to_rgb(image: Image.Image, alpha: Alpha = "white") -> Image.Image:
    """Convert a decoded image of any Pillow mode to 8-bit RGB; opaque RGB images are unchanged.

    Raises:
        ImageError: its pixels have an unknown range, or its palette or transparency is damaged.
    """
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = _reduce_depth(image)
        elif image.mode == "La":  # premultiplied, which Pillow converts to nothing else
            image = image.convert("LA")
        if alpha == "white" and image.has_transparency_data:
            clear = image.convert("RGBA")
            image = Image.new("RGB", clear.size, "white")
            image.paste(clear, mask=clear)
            return image
        with warnings.catch_warnings():  # of transparency that "RGB" has no room for
            warnings.simplefilter("ignore", UserWarning)
            return image if image.mode == "RGB" else image.convert("RGB")
    except (ValueError, TypeError, OverflowError, OSError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(DAMAGED, str(error)) from error


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Convert an "I", "I;16" or "F" image to "L", or to "LA" with a transparent grey level."""
    import numpy as np

    values = np.asarray(image)
    grey = Image.fromarray(to_8_bits(values))
    level = image.info.get("transparency")
    if isinstance(level, int):
        grey.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return grey


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Convert values to uint8 from the range of their type and values.

    Raises:
        ImageError: the range is unknown, see this module.
    """
    import numpy as np

    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise ImageError(RANGE, f"numbers of type {values.dtype}")
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if kind == "u" and values.dtype.itemsize == 2:
        return _from_16_bits(values)
    if not (least >= 0 and most <= 65_535):  # also where one is not a number
        raise ImageError(RANGE, f"{_range(least, most)}, {KNOWN_RANGES}")
    if kind == "f" and most <= 1:
        return np.rint(values * values.dtype.type(255)).astype(np.uint8)
    if kind == "f" and (values != np.rint(values)).any():
        raise ImageError(RANGE, f"fractions {_range(least, most)}, {KNOWN_RANGES}")
    return values.astype(np.uint8) if most <= 255 else _from_16_bits(values)


KNOWN_RANGES = "neither 8 nor 16 bits, nor floats from 0 to 1"


def _range(least: Any, most: Any) -> str:
    return f"from {least:g} to {most:g}"


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    import numpy as np

    table = ((np.arange(65_536) + 128) // 257).astype(np.uint8)
    return table[values.astype(np.uint16)]


def is_array(image: Any) -> bool:
    """Whether `image` is a NumPy array or a tensor, without importing either."""
    return hasattr(image, "__array__") and not isinstance(image, Image.Image)


def from_array(array: Any) -> Image.Image:
    """Convert a NumPy array [H,W] or [H,W,C], or a tensor [H,W] or [C,H,W], to an 8-bit image.

    One channel is grey, two are grey and alpha, three RGB, four RGBA.

    Raises:
        ImageError: it has another shape, or values of an unknown range.
    """
    import numpy as np

    shape = tuple(array.shape)
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
        layout = "a tensor is [H,W] or [C,H,W]"
    else:
        layout = "an array is [H,W] or [H,W,C]"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or not array.size:
        raise ImageError(SHAPE, f"{list(shape)}; {layout}, with 1 to 4 channels")
    values = to_8_bits(array.reshape(*array.shape[:2], channels))
    values = np.ascontiguousarray(values[..., 0] if channels == 1 else values)
    return Image.fromarray(values, CHANNELS[channels])


def scale_transparent_colour(header: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, like Pillow scales its pixels.

    Must be called before decoding.
    """
    tiles = getattr(header, "tile", None)
    raw, colour = tiles[0][3] if tiles else None, header.info.get("transparency")
    if raw == "RGB;16B" and isinstance(colour, tuple):
        header.info["transparency"] = tuple(level >> 8 for level in colour)
    elif isinstance(raw, str) and raw in GREY_LEVELS and isinstance(colour, int):
        header.info["transparency"] = colour * GREY_LEVELS[raw]
