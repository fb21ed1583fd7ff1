"""What is asked of a model, read from arguments, text files and JSON lines."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych import documents
from triptych.documents import parse_json
from triptych.errors import UserError
from triptych.limits import IMAGES, SCALE, SEED, STEPS, Range
from triptych.listing.folders import list_images
from triptych.listing.names import IMAGE_SUFFIXES

# Option of a line -> what it may be.
NUMBERS: dict[str, Range] = {
    "seed": SEED,
    "n": IMAGES,
    "steps": STEPS,
    "guidance": SCALE,
    "decoder_steps": STEPS,
    "decoder_guidance": SCALE,
}


@dataclass
class Request:
    """A text, pictures it is about, and how many pictures are to be made of it."""

    text: str
    id: str | None = None
    images: list[Path] = field(default_factory=list)
    seed: int | None = None
    n: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the whole command."""


def read_prompts(texts: Sequence[str], file: str | None) -> list[Request]:
    """Prompts given as arguments, then those of a file; "-" is standard input.

    A .jsonl file, or input that begins with "{", has one object a line: prompt, and optionally id,
    seed, n, negative, steps, guidance, decoder_steps, decoder_guidance. Other files have one
    prompt a line; empty lines count for nothing.

    Raises:
        UserError: there is no prompt or no file, a prompt is empty, or a line is wrong.
    """
    requests = [Request(_said(text, "the prompt is empty")) for text in texts]
    if file is not None:
        content = read_text(file)
        if file.endswith(".jsonl") or (file == "-" and content.lstrip().startswith("{")):
            requests += read_lines(file, content, "prompt", {"negative"}, read_request)
        else:
            requests += [Request(line.strip()) for line in content.splitlines() if line.strip()]
    if not requests:
        raise UserError(f"there is no prompt in {file}; write one a line.")
    return requests


def read_text(file: str) -> str:
    """A file's text, or standard input's.

    Raises:
        UserError: it does not exist, is no file, or no text.
    """
    if file != "-":
        return documents.read_text(file)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError("standard input is no text in UTF-8; convert it.") from error


def read_lines(
    file: str, content: str, text: str, more: set[str], read: Callable[..., Request]
) -> list[Request]:
    """JSON lines as requests; `text` is the key of what is said, `more` other keys that may be.

    Raises:
        UserError: a line is no such object, or two have one id; the file and line are named.
    """
    requests, lines = [], {}
    for where, line in objects(file, content):
        request = read(line, where, text, more)
        if request.id in lines:
            raise UserError(f"{where}: the id {request.id!r} is that of {lines[request.id]} too.")
        if request.id is not None:
            lines[request.id] = where
        requests.append(request)
    return requests


def objects(file: str, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of JSON lines; empty lines count for nothing."""
    name = "standard input" if file == "-" else file
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        yield where, parse_json(line, where)


def read_request(line: dict[str, Any], where: str, text: str, more: set[str]) -> Request:
    """One line as a request."""
    known = {text, "id", *NUMBERS, *more}
    if unknown := sorted(set(line) - known):
        raise UserError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(known))}.")
    if not isinstance(line.get(text), str):
        raise UserError(f'{where} has no text "{text}"; write one.')
    options = {key: line[key] for key in (*NUMBERS, *more) if line.get(key) is not None}
    for key, value in options.items():
        _check_option(key, value, where)
    seed, n = options.pop("seed", None), options.pop("n", None)
    images = [existing(image, f"{where}: ") for image in _listed(options.pop("image", []))]
    said = _said(line[text], f"{where}: the {text} is empty")
    return Request(said, read_id(line, where), images, seed, n, options)


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


def existing(path: Any, where: str) -> Path:
    """A picture's path.

    Raises:
        UserError: there is no file there.
    """
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise UserError(f"{where}the picture {path} does not exist; check the path.")
    return Path(path)


def images_at(path: str) -> list[Path]:
    """An image file, or the images of a folder in the order of their paths.

    Raises:
        UserError: there is no such file, or no image in the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [existing(path, "")]
    found = [folder / name for name in list_images(folder)]
    if not found:
        raise UserError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_option(key: str, value: Any, where: str) -> None:
    if key not in NUMBERS:
        if not isinstance(value, str | list if key == "image" else str):
            raise UserError(f"{where}: {key} is {value!r}, which is no text.")
        return
    NUMBERS[key].require(value, f"{where}: {key}")


def _said(text: str, empty: str) -> str:
    if not text.strip():
        raise UserError(f"{empty}; say what the picture should show.")
    return text
