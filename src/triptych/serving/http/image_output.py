"""Images as clients get them."""

from __future__ import annotations

import base64

from PIL import Image

from triptych.utils.images import encode_image
from triptych.utils.png_metadata import embed_metadata, metadata_of


def scaled(image: Image.Image, side: int | None) -> Image.Image:
    """The image at another side in pixels, settings and all; None leaves it."""
    if side is None or image.size == (side, side):
        return image
    made = image.resize((side, side), Image.Resampling.LANCZOS)
    return embed_metadata(made, metadata_of(image))


def encode(image: Image.Image, file_format: str = "png", quality: int | None = None) -> str:
    """A file in base64; a PNG carries the settings that made it. `quality` is in percent."""
    # a hundred percent is what OpenAI's interface has by default
    saving = {} if file_format == "png" else {"quality": 100 if quality is None else quality}
    return base64.b64encode(encode_image(image, file_format, **saving)).decode()
