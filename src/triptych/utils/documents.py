"""Untrusted documents: text, YAML and JSON, with limits and checks before use.

All files that were not written by this process are read here: pipes are refused instead of
blocking, and a document that would exhaust memory is refused before it is built.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from triptych.utils.errors import UserError
from triptych.utils.text import decode_text, numbered_lines

MIB = 2**20
STDIN = "standard input"
YAML_BYTES = MIB
JSON_BYTES = 32 * MIB
TEXT_BYTES = 256 * MIB
DEPTH = 64
"""Maximum nesting depth of mappings and lists."""
NODES = 100_000
"""Maximum number of values of a YAML document, with aliases expanded."""
LONG = 64
"""Number of characters that count as one more value of a text."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TYPES = {dict: "object", list: "list"}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; anything else is refused without blocking.

    Raises:
        UserError: the file does not exist, is not a regular file, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be opened ({reason}); give a file.") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; give a file.")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, largest: int) -> bytes:
    """Read a regular file of at most `largest` bytes.

    Raises:
        UserError: an error of `open_regular`, or the file is larger or cannot be read.
    """
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) <= largest:
                content = file.read(largest + 1)
                size = len(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the disk.") from error
    if size > largest:
        raise UserError(
            f"{path} has {size:,} bytes, and at most {largest:,} are read; it is no such file."
        )
    return content


def read_text(path: str | Path, largest: int = TEXT_BYTES) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        UserError: an error of `read_bytes`, or the file is not UTF-8.
    """
    return decode_text(read_bytes(path, largest), path)


def read_standard_input(largest: int = TEXT_BYTES) -> str:
    """Read standard input like `read_text`.

    Raises:
        UserError: standard input is closed, has more than `largest` bytes, or is not UTF-8.
    """
    content = _standard_input().read(largest + 1)
    if len(content) > largest:
        raise UserError(f"standard input has more than {largest:,} bytes; give less at once.")
    return decode_text(content, STDIN)


def read_standard_line() -> str | None:
    """Read the next line of standard input; None at its end.

    Raises:
        UserError: standard input is closed, or the line is longer than 1 MiB or not UTF-8.
    """
    line = _standard_input().readline(MIB + 1)
    if len(line) > MIB:
        raise UserError(f"a line of standard input has more than {MIB:,} bytes; shorten it.")
    return decode_text(line, STDIN) if line else None


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise UserError("standard input is closed; give a file, or open it.")
    return sys.stdin.buffer


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file of at most 1 MiB.

    Raises:
        UserError: an error of `read_text` or `parse_yaml`.
    """
    return parse_yaml(read_text(path, YAML_BYTES), path)


def parse_yaml(text: str, what: object) -> dict[str, Any]:
    """Parse a YAML document to a mapping; `what` names it in errors.

    Raises:
        UserError: it is malformed, not a mapping, nested too deep, or too large.
    """
    content = load_yaml(text, what)
    if not isinstance(content, dict):
        found = {type(None): "empty", list: "a list", str: "a text"}.get(type(content), "a number")
        raise UserError(
            f"{what} is {found}, not a mapping of names to values; correct it or download it again."
        )
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{what}: the key {key!r} is no name; put it in quotes or correct it.")
    return content


def load_yaml(text: str, what: object, loader: type | None = None) -> Any:
    """Parse a YAML document to any value, within the same limits.

    Args:
        text: YAML text.
        what: name of the document in errors.
        loader: a safe loader; None is that of PyYAML.

    Raises:
        UserError: it is malformed, nested too deep, or too large.
    """
    loader = loader or getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        measure_yaml(text, what, loader)
        return yaml.load(text, Loader=loader)  # a safe loader: no tag makes an object
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise UserError(f"{what} is no YAML{where} ({problem}); correct it.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(
            str(error).split()
        )  # ValueError: the 40th of May, a number of 5,000 digits
        raise UserError(f"{what} is no YAML ({reason}); correct it.") from error


@dataclass
class _Open:
    """An open mapping or list."""

    anchor: str | None
    before: int
    """Number of values of the document up to here."""
    keys: set[str] | None
    """Keys of a mapping; None for other values."""
    at_key: bool = True


def measure_yaml(text: str, what: object, loader: type) -> None:
    """Check the limits of a YAML document from parser events, without building it.

    Raises:
        UserError: it is nested too deep, too large with aliases expanded, or has a duplicate key.
        yaml.YAMLError: it is malformed.
    """
    sizes: dict[str, int] = {}  # size of each anchor's target, with aliases expanded
    opened: list[_Open] = []
    total = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent) and opened and opened[-1].keys is not None:
            _take_key(opened[-1], event, what)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (each.anchor for each in opened):
                raise UserError(f"{what}: the alias *{event.anchor} at line {line} holds itself.")
            total += sizes.get(event.anchor, 1)  # the loader refuses unknown ones
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // LONG
            total += size
            if event.anchor:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            keys = set() if isinstance(event, yaml.MappingStartEvent) else None
            opened.append(_Open(event.anchor, total, keys))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = opened.pop()
            if ended.anchor:
                sizes[ended.anchor] = total - ended.before
        if len(opened) > DEPTH:
            raise UserError(f"{what} is nested more than {DEPTH} levels deep at line {line}.")
        if total > NODES:
            raise UserError(
                f"{what} has more than {NODES:,} values, its aliases followed (line {line}); "
                "write it shorter."
            )


def _take_key(mapping: _Open, event: yaml.NodeEvent, what: object) -> None:
    """Track keys, which alternate with values; a duplicate key would hide the first."""
    if mapping.at_key and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        if event.value in mapping.keys:
            line = event.start_mark.line + 1
            raise UserError(f"{what}: the key {event.value!r} at line {line} is there twice.")
        mapping.keys.add(event.value)
    mapping.at_key = not mapping.at_key


def read_json(path: str | Path, kind: type = dict, largest: int = JSON_BYTES) -> Any:
    """Read an object (or, by `kind`, a list) from a JSON file.

    Raises:
        UserError: an error of `read_text` or `parse_json`.
    """
    return parse_json(read_text(path, largest), path, kind)


def read_json_lines(text: str, name: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (NAME:NUMBER, object) of the non-blank lines of a text.

    Raises:
        UserError: an error of `parse_json`, with the line.
    """
    for number, line in numbered_lines(text):
        yield f"{name}:{number}", parse_json(line, f"{name}:{number}")


def parse_json(text: str | bytes, what: object, kind: type = dict) -> Any:
    """Parse a JSON text.

    Args:
        text: JSON text; bytes are UTF-8.
        what: name of the text in errors.
        kind: required type, dict or list; `object` for any.

    Raises:
        UserError: it is malformed, of another type, or nested too deep.
    """
    if isinstance(text, bytes):
        text = decode_text(text, what)
    try:
        content = json.loads(text, object_pairs_hook=_object)
        # each level has a bracket: few texts need the traversal
        if text.count("[") + text.count("{") > DEPTH and _deeper(content):
            raise RecursionError
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} is no JSON at line {error.lineno} ({error.msg}); correct it or download it "
            "again."
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(f"{what} holds half a character, a lone surrogate; correct it.") from error
    except RecursionError as error:
        raise UserError(
            f"{what} is nested more than {DEPTH} levels deep; it is no such file."
        ) from error
    except ValueError as error:  # a number of more than 4,300 digits, a duplicate key
        raise UserError(f"{what} is no JSON ({error}); correct it.") from error
    if not isinstance(content, kind):
        raise UserError(f"{what} is no JSON {_TYPES[kind]}; correct it or download it again.")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found


def _deeper(content: Any) -> bool:
    level = [content]
    for _ in range(DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True
