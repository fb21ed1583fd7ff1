"""Pictures as clients get them."""

from __future__ import annotations

import base64
import json
from io import BytesIO

from PIL import Image

from triptych.utils.png_metadata import CHUNK, attach


def scaled(picture: Image.Image, side: int | None) -> Image.Image:
    """The picture at another side in pixels, settings and all; None leaves it."""
    if side is None or picture.size == (side, side):
        return picture
    made = picture.resize((side, side), Image.Resampling.LANCZOS)
    settings = picture.info.get(CHUNK)
    return made if settings is None else attach(made, json.loads(settings))


def encode(picture: Image.Image, file_format: str = "png", quality: int | None = None) -> str:
    """A file in base64; a PNG carries the settings that made it. `quality` is in percent."""
    file = BytesIO()
    if file_format == "png":
        picture.save(file, "PNG")
    else:
        # A hundred percent is what OpenAI's interface has by default.
        picture.save(file, file_format.upper(), quality=100 if quality is None else quality)
    return base64.b64encode(file.getvalue()).decode()
