"""Image encoding for clients."""

from __future__ import annotations

import base64

from PIL import Image

from triptych.utils.images import encode_image
from triptych.utils.png_metadata import embed_metadata, metadata_of

LARGE_SIDE = 1024
"""Side in pixels above which encoding an image takes long."""


def scaled(image: Image.Image, side: int | None) -> Image.Image:
    """Resize an image to another side in pixels, with its metadata; None returns it unchanged."""
    if side is None or image.size == (side, side):
        return image
    resized = image.resize((side, side), Image.Resampling.LANCZOS)
    return embed_metadata(resized, metadata_of(image))


def encode(image: Image.Image, file_format: str = "png", quality: int | None = None) -> str:
    """Encode an image file in base64; a PNG stores its metadata. `quality` is in percent."""
    # 100 is the default of OpenAI's API
    options = {} if file_format == "png" else {"quality": 100 if quality is None else quality}
    return base64.b64encode(encode_image(image, file_format, **options)).decode()
