"""Generation metadata of images: a dictionary in memory, a text chunk "triptych" in PNG files."""

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

    The folder on this machine stays private; a hash of the content distinguishes equal names.
    """
    if not os.path.exists(source) and not os.path.isabs(source):
        return str(source)
    return os.path.basename(os.path.abspath(source)) or "model"


def embed_metadata(image: Image.Image, metadata: dict[str, Any]) -> Image.Image:
    """Attach metadata to an image, for `metadata_of` and PNG files; returns the same image."""
    chunk = PngInfo()
    chunk.add_itxt(CHUNK, json.dumps(metadata, ensure_ascii=False))  # UTF-8, unlike a plain chunk
    image.encoderinfo = {"pnginfo": chunk}
    image.info[CHUNK] = metadata
    return image


def metadata_of(image: Image.Image) -> dict[str, Any]:
    """Metadata of an image in memory; empty if it has none.

    Raises:
        UserError: the image was read from a file with invalid metadata.
    """
    found = image.info.get(CHUNK, {})
    return parse_json(found, CHUNK) if isinstance(found, str | bytes) else found


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Read the metadata of an image file.

    Raises:
        UserError: it is not an image, or has no metadata.
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
