"""Requests to a model, read from arguments, text files and JSON lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.inference.argument_names import MEANT
from triptych.inference.generation_config import FIELDS, limit_of
from triptych.utils.errors import UserError
from triptych.utils.image_urls import is_url
from triptych.utils.listing.folders import list_images
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.prompt_files import read_entries, read_objects
from triptych.utils.text import clean_text, is_blank

MAX_SHOWN_PATH = 200  # characters of a path in a message


@dataclass
class Request:
    """A text, the images it is about, and the number of images to make."""

    text: str
    id: str | None = None
    images: list[Path] = field(default_factory=list)
    seed: int | None = None
    num_images: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the whole command."""


def read_prompts(texts: Sequence[str], file: str | None, content: str = "") -> list[Request]:
    """Prompts given as arguments, then those of a file; "-" is standard input.

    An object of a file (see `prompt_files.read_entries`) has a prompt, and optionally an id and
    any field of `GenerationConfig`.

    Args:
        content: text of the file.

    Raises:
        UserError: there is no prompt, a prompt cannot be used, or a line is wrong.
    """
    requests = [Request(require_text(text, "the prompt")) for text in texts]
    if file is not None:
        entries = read_entries(file, content)
        requests += read_lines(entries, "prompt", set(), read_request)
    if not requests:
        raise UserError(f"there is no prompt in {file}; write one a line.")
    return requests


def read_edits(file: str, content: str) -> list[Request]:
    """JSON lines of edits: instruction, image, and optionally what a prompt may have.

    Raises:
        UserError: a line is wrong; the file and line are named.
    """
    return read_lines(read_objects(file, content), "instruction", {"image"}, read_request)


def read_lines(
    entries: Iterable[tuple[str, str | dict[str, Any]]],
    text: str,
    more: set[str],
    read: Callable[..., Request],
) -> list[Request]:
    """Entries of a file as requests; `text` is the key of the prompt, `more` other keys.

    Raises:
        UserError: one is not such an object, or two have one id; the file and line are named.
    """
    requests, lines = [], {}
    for where, line in entries:
        line = {text: line} if isinstance(line, str) else line
        request = read(line, where, text, more)
        if request.id in lines:
            raise UserError(f"{where}: the id {request.id!r} is that of {lines[request.id]} too.")
        if request.id is not None:
            lines[request.id] = where
        requests.append(request)
    return requests


def read_request(line: dict[str, Any], where: str, text: str, more: set[str]) -> Request:
    """One line as a request."""
    known = {text, "id", *FIELDS, *more}
    if unknown := sorted(set(line) - known):
        if (meant := MEANT.get(unknown[0])) in known:
            raise UserError(f"{where}: {unknown[0]!r} is unknown; use {meant}.")
        raise UserError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(known))}.")
    if not isinstance(line.get(text), str):
        raise UserError(f'{where} has no text "{text}"; write one.')
    options = {key: line[key] for key in (*FIELDS, *more) if line.get(key) is not None}
    for key, value in options.items():
        options[key] = _checked(key, value, where)
    seed = options.pop("seed", None)
    number = options.pop("num_images_per_prompt", None)
    images = [existing_image(image, f"{where}: ") for image in _listed(options.pop("image", []))]
    asked = require_text(line[text], f"{where}: the {text}")
    return Request(asked, read_id(line, where), images, seed, number, options)


def read_id(line: dict[str, Any], where: str) -> str | None:
    """The id of a line, that files may be named by."""
    name = line.get("id")
    if name is None:
        return None
    if not isinstance(name, str | int) or not re.fullmatch(r"\w[\w.-]{0,99}", str(name)):
        raise UserError(
            f"{where}: the id {name!r} names no file; use up to 100 letters, digits and _ - ."
        )
    return str(name)


def existing_image(path: Any, where: str) -> Path:
    """Check that the path of an image exists.

    Raises:
        UserError: the file does not exist.
    """
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        shown = (
            str(path) if len(str(path)) <= MAX_SHOWN_PATH else f"{str(path)[:MAX_SHOWN_PATH]}..."
        )
        what = f"image {shown or repr(shown)}"
        if is_url(str(path)):
            raise UserError(f"{where}the {what} is a URL; save it and give the path of its file.")
        raise UserError(f"{where}the {what} does not exist; check the path.")
    return Path(path)


def images_at(path: str) -> list[Path]:
    """An image file, or the images of a folder in the order of their paths.

    Raises:
        UserError: the file does not exist, or the folder has no image.
    """
    folder = Path(path)
    if not os.path.isdir(path):
        return [existing_image(path, "")]
    found = [folder / name for name in list_images(folder)]
    if not found:
        raise UserError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _checked(key: str, value: Any, where: str) -> Any:
    if key in FIELDS:
        limit_of(key).require(value, f"{where}: {key}")
    elif not isinstance(value, str | list if key == "image" else str):
        raise UserError(f"{where}: {key} is {value!r}, which is no text.")
    return clean_text(value, f"{where}: {key}") if key == "negative_prompt" else value


def require_text(text: str, what: str, remedy: str = "say what the image should show") -> str:
    """A text of a user, clean, before anything is loaded.

    Raises:
        UserError: it is blank, or none that a model can be given.
    """
    text = clean_text(text, what)
    if is_blank(text):
        raise UserError(f"{what} is empty; {remedy}.")
    return text
