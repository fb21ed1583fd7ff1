"""Pictures as clients get them."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image


def encode(picture: Image.Image, file_format: str = "png", quality: int | None = None) -> str:
    """A file in base64; a PNG carries the settings that made it. `quality` is in percent."""
    file = BytesIO()
    if file_format == "png":
        picture.save(file, "PNG")
    else:
        # A hundred percent is what OpenAI's interface has by default.
        picture.save(file, file_format.upper(), quality=100 if quality is None else quality)
    return base64.b64encode(file.getvalue()).decode()
