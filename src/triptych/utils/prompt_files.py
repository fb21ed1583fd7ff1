"""Prompt files, by suffix: one prompt per line, JSON lines, or a JSON list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.utils.documents import (
    STDIN,
    parse_json,
    read_json_lines,
    read_standard_input,
    read_text,
)
from triptych.utils.errors import UserError
from triptych.utils.text import clean_text, numbered_lines

JSON_LINES = (".jsonl", ".ndjson")
# other formats, whose lines would be taken for prompts
OTHER_FORMATS = (".csv", ".tsv", ".parquet", ".yaml", ".yml")
# beginning of JSON, not of prompts: an object, a list of objects or of texts
_JSON = re.compile(r'\{|\[\s*([{"]|$)')

STDIN_FILE = "TRIPTYCH_STDIN"
"""Environment variable: file with the standard input of the parent process."""


def read_input(file: str) -> str:
    """Read a file, or standard input for "-".

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    if file == "-" and STDIN_FILE in os.environ:
        return read_text(os.environ[STDIN_FILE])
    return read_standard_input() if file == "-" else read_text(file)


def read_entries(file: str, content: str) -> Iterator[tuple[str, str | dict[str, Any]]]:
    """Yield (place, prompt or object) of the entries of a prompt file, without blank lines.

    .jsonl and .ndjson have one JSON object per line, .json a list of objects or texts, other files
    one prompt per line. Standard input ("-") is JSON lines if it begins with "{".

    Raises:
        UserError: the file has another format, or a line is invalid.
    """
    name, suffix = place_name(file), Path(file).suffix.lower()
    if suffix in OTHER_FORMATS:
        raise UserError(
            f"{name} is a {suffix} file; give prompts a line as .txt, or as .jsonl, .ndjson, .json."
        )
    if suffix == ".json":
        for number, entry in enumerate(parse_json(content, name, list), 1):
            if not isinstance(entry, str | dict):
                raise UserError(f"{name}: entry {number} is neither a text nor an object.")
            yield f"{name}: entry {number}", _cleaned(entry, f"{name}: entry {number}")
    elif suffix in JSON_LINES or (file == "-" and content.lstrip().startswith("{")):
        yield from read_json_lines(content, name)
    else:
        for number, line in numbered_lines(content):
            place = f"{name}:{number}"
            if _JSON.match(line):
                remedy = "give it as .jsonl, a JSON object a line"
                if file == "-":
                    remedy = "give JSON lines alone, or prompts alone"
                raise UserError(f"{place} begins with {line[0]!r}, as JSON does; {remedy}.")
            yield place, _cleaned(line, place)


def _cleaned(entry: str | dict[str, Any], place: str) -> str | dict[str, Any]:
    """Clean a prompt; the texts of an object are cleaned by its reader."""
    return clean_text(entry, f"{place}: the prompt").strip() if isinstance(entry, str) else entry


def read_objects(file: str, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of JSON lines, or of the JSON list in a .json file.

    Raises:
        UserError: an entry is not a JSON object.
    """
    if Path(file).suffix.lower() != ".json":
        yield from read_json_lines(content, place_name(file))
        return
    for place, entry in read_entries(file, content):
        if not isinstance(entry, dict):
            raise UserError(f"{place} is no JSON object; correct it.")
        yield place, entry


def place_name(file: str) -> str:
    """Name of a file in messages."""
    return STDIN if file == "-" else file
