"""Requests to a model: read from arguments, text files and JSON lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.inference.argument_names import MEANT
from triptych.inference.generation_config import FIELDS, OF_EDITS, PROMPT_FIELDS, limit_of
from triptych.utils.errors import UserError
from triptych.utils.image_urls import is_url
from triptych.utils.listing.folders import list_images
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.prompt_files import read_entries, read_objects
from triptych.utils.text import clean_text, is_blank

MAX_SHOWN_PATH = 200
"""Maximum length of a path in a message."""


@dataclass
class InputRequest:
    """A text with its input images, and the number of images to generate."""

    text: str
    id: str | None = None
    images: list[Path] = field(default_factory=list)
    seed: int | None = None
    num_images: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the command."""


def read_prompts(texts: Sequence[str], file: str | None, content: str = "") -> list[InputRequest]:
    """Read the prompts of the arguments, then those of a file.

    An object of a file (see `prompt_files.read_entries`) has a prompt, and optionally an id and
    any field of `GenerationConfig`.

    Args:
        texts: prompts of the arguments.
        file: name of the file, "-" for standard input; None if there is none.
        content: text of the file.

    Raises:
        UserError: there is no prompt, or a prompt or line is invalid.
    """
    requests = [InputRequest(require_text(text, "the prompt")) for text in texts]
    if file is not None:
        entries = read_entries(file, content)
        requests += read_lines(entries, "prompt", set(), read_request)
    if not requests:
        raise UserError(f"there is no prompt in {file}; write one on each line.")
    return requests


def read_edits(file: str, content: str) -> list[InputRequest]:
    """Read JSON lines of edits: instruction, image, and the optional keys of a prompt.

    Raises:
        UserError: a line is invalid; the message names the file and line.
    """
    return read_lines(
        read_objects(file, content), "instruction", {"image", *OF_EDITS}, read_request
    )


def read_lines(
    entries: Iterable[tuple[str, str | dict[str, Any]]],
    text_key: str,
    other_keys: set[str],
    read: Callable[..., InputRequest],
) -> list[InputRequest]:
    """Convert the entries of a file to requests.

    Args:
        text_key: key of the prompt or instruction.
        other_keys: further allowed keys.

    Raises:
        UserError: an entry is invalid, or two have the same id; the message names file and line.
    """
    requests, lines = [], {}
    for where, line in entries:
        line = {text_key: line} if isinstance(line, str) else line
        request = read(line, where, text_key, other_keys)
        if request.id in lines:
            raise UserError(f"{where}: the id {request.id!r} is that of {lines[request.id]} too.")
        if request.id is not None:
            lines[request.id] = where
        requests.append(request)
    return requests


def read_request(
    line: dict[str, Any], where: str, text_key: str, other_keys: set[str]
) -> InputRequest:
    """Validate one line and convert it to a request."""
    allowed = {text_key, "id", *PROMPT_FIELDS, *other_keys}
    if unknown := sorted(set(line) - allowed):
        if (replacement := MEANT.get(unknown[0])) in allowed:
            raise UserError(f"{where}: {unknown[0]!r} is unknown; use {replacement}.")
        raise UserError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(allowed))}.")
    if not isinstance(line.get(text_key), str):
        raise UserError(f'{where} has no text "{text_key}"; write one.')
    options = {key: line[key] for key in (*PROMPT_FIELDS, *other_keys) if line.get(key) is not None}
    for key, value in options.items():
        options[key] = _validated(key, value, where)
    seed = options.pop("seed", None)
    number = options.pop("num_images_per_prompt", None)
    images = [existing_image(image, f"{where}: ") for image in _as_list(options.pop("image", []))]
    text = require_text(line[text_key], f"{where}: the {text_key}")
    return InputRequest(text, read_id(line, where), images, seed, number, options)


def read_id(line: dict[str, Any], where: str) -> str | None:
    """Read the id of a line, which may become a file name."""
    name = line.get("id")
    if name is None:
        return None
    if not isinstance(name, str | int) or not re.fullmatch(r"\w[\w.-]{0,99}", str(name)):
        raise UserError(
            f"{where}: the id {name!r} names no file; use up to 100 letters, digits and _ - ."
        )
    return str(name)


def existing_image(path: Any, where: str) -> Path:
    """Check that an image file exists.

    Args:
        where: prefix of the message that names the file and line.

    Raises:
        UserError: the file does not exist.
    """
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        shown = (
            str(path) if len(str(path)) <= MAX_SHOWN_PATH else f"{str(path)[:MAX_SHOWN_PATH]}..."
        )
        name = f"image {shown or repr(shown)}"
        if is_url(str(path)):
            raise UserError(f"{where}the {name} is a URL; save it and give the path of its file.")
        raise UserError(f"{where}the {name} does not exist; check the path.")
    return Path(path)


def images_at(path: str) -> list[Path]:
    """Return an image file, or the images of a folder in the order of their paths.

    Raises:
        UserError: the file does not exist, or the folder has no image.
    """
    folder = Path(path)
    if not os.path.isdir(path):
        return [existing_image(path, "")]
    images = [folder / name for name in list_images(folder)]
    if not images:
        raise UserError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return images


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _validated(key: str, value: Any, where: str) -> Any:
    if key in FIELDS:
        limit_of(key).require(value, f"{where}: {key}")
    elif not isinstance(value, str | list if key == "image" else str):
        raise UserError(f"{where}: {key} is {value!r}, which is not a text.")
    return clean_text(value, f"{where}: {key}") if key == "negative_prompt" else value


def require_text(text: str, what: str, remedy: str = "say what the image should show") -> str:
    """Clean a text of a user, before the model is loaded.

    Args:
        what: name of the text in messages.
        remedy: advice for an empty text.

    Raises:
        UserError: the text is blank, or not valid model input.
    """
    text = clean_text(text, what)
    if is_blank(text):
        raise UserError(f"{what} is empty; {remedy}.")
    return text
