"""What made a picture, kept inside its PNG file: a text chunk "triptych" of JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych.utils.documents import parse_json
from triptych.utils.errors import PictureError, UserError
from triptych.utils.image_reader import read_header

CHUNK = "triptych"


def shown_name(source: str | Path) -> str:
    """The name of a file, folder, preset or hub id in what is passed on: a path's last part alone.

    Where it lies on this machine is nobody's business; a digest of its content tells it from
    another one of that name.
    """
    if not os.path.exists(source) and not os.path.isabs(source):
        return str(source)
    return os.path.basename(os.path.abspath(source)) or "model"


def attach(picture: Image.Image, settings: dict[str, Any]) -> Image.Image:
    """The same picture; saved as PNG, it carries `settings`, which are also in its `info`."""
    text = json.dumps(settings, ensure_ascii=False)
    chunk = PngInfo()
    chunk.add_itxt(CHUNK, text)  # UTF-8, unlike a plain text chunk
    picture.encoderinfo = {"pnginfo": chunk}
    picture.info[CHUNK] = text
    return picture


def settings_of(path: Path | str) -> dict[str, Any]:
    """The settings that a picture file was made with.

    Raises:
        UserError: it is no picture, or carries none.
    """
    try:
        text = read_header(path).info[CHUNK]
    except PictureError as error:
        raise UserError(f"{path} is no picture that can be read ({error}).") from error
    except KeyError:
        text = ""
    try:
        return parse_json(text, path)
    except UserError as error:
        raise UserError(
            f"{path} says nothing of how it was made: not by triptych, or not a PNG."
        ) from error
