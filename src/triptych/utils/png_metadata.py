"""Generation metadata: a dictionary in memory, a JSON text chunk "triptych" in a PNG file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych.utils.documents import parse_json
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import read_header

CHUNK = "triptych"


def shown_name(source: str | Path) -> str:
    """Public name of a file, folder, preset or hub id: of a path, only the last part.

    The folder on this machine stays private; a digest of the content tells it from
    another one of that name.
    """
    if not os.path.exists(source) and not os.path.isabs(source):
        return str(source)
    return os.path.basename(os.path.abspath(source)) or "model"


def embed_metadata(image: Image.Image, metadata: dict[str, Any]) -> Image.Image:
    """The same image; `metadata_of` it is this dictionary, and a PNG file of it carries it."""
    chunk = PngInfo()
    chunk.add_itxt(CHUNK, json.dumps(metadata, ensure_ascii=False))  # UTF-8, unlike a plain chunk
    image.encoderinfo = {"pnginfo": chunk}
    image.info[CHUNK] = metadata
    return image


def metadata_of(image: Image.Image) -> dict[str, Any]:
    """Metadata of an image in memory; empty if it has none.

    Raises:
        UserError: the image was read from a file, whose text is not JSON.
    """
    found = image.info.get(CHUNK, {})
    return parse_json(found, CHUNK) if isinstance(found, str | bytes) else found


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Metadata that an image file was made with.

    Raises:
        UserError: it is not an image, or carries none.
    """
    try:
        text = read_header(path).info[CHUNK]
    except ImageError as error:
        raise UserError(f"{path} is not an image that can be read ({error}).") from error
    except KeyError:
        text = ""
    try:
        return parse_json(text, path)
    except UserError as error:
        raise UserError(
            f"{path} says nothing of how it was made: not by triptych, or not a PNG."
        ) from error
