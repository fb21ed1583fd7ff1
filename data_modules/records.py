"""Records of tables and JSON lines, one by one: a bad one is named, and the others are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from triptych.contracts import UserError
from triptych.documents import open_regular

LONGEST = 1 << 20  # bytes of a line, or characters of a field, that are read

NO_JSON = "record is no JSON"
NO_OBJECT = "record is no JSON object"
TOO_LONG = "record is too long"


def parse(line: bytes) -> object:
    """A JSON record; bytes that are no UTF-8 become U+FFFD.

    Raises:
        ValueError: it is no JSON, has a key twice, or is nested too deep.
    """
    try:
        return json.loads(line.decode("utf-8", "replace"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("brackets in brackets without end") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def read_table(path: Path, errors: str = "replace") -> Iterator[dict[str, Any] | str]:
    """The rows of a CSV with a line of names, or of JSON lines; a reason for each bad one.

    Args:
        errors: what becomes of bytes that are no UTF-8, see `codecs`; in a CSV only.

    Raises:
        UserError: the file cannot be read, or the names of a CSV cannot.
    """
    try:
        with open_regular(path) as file:
            if path.suffix.lower() == ".csv":
                yield from _csv_rows(file, path, errors)
            else:
                yield from map(_json_row, long_lines(file))
    except OSError as error:
        raise UserError(f"the table {path} cannot be read: {error.strerror}.") from error


def _csv_rows(file: BinaryIO, path: Path, errors: str) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))  # of the process, only ever raised
    rows = csv.DictReader(TextIOWrapper(file, "utf-8-sig", errors, newline=""))
    try:
        rows.fieldnames  # noqa: B018 - reads the first line
    except csv.Error as error:
        raise UserError(f"the first line of {path} names no columns: {error}.") from error
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # the next line begins a row again
            yield TOO_LONG
            continue
        row.pop(None, None)  # fields beyond the named ones
        yield row


def _json_row(line: bytes | None) -> dict[str, Any] | str:
    if line is None:
        return TOO_LONG
    try:
        row = parse(line)
    except ValueError:
        return NO_JSON
    return row if isinstance(row, dict) else NO_OBJECT


def long_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file that are not blank, None for one of more than LONGEST bytes."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST and not line.endswith(b"\n"):
            skip_line(file)
            yield None
        elif line.strip():
            yield line.removeprefix(b"\xef\xbb\xbf")


def skip_line(file: BinaryIO) -> int:
    """Go to the next line; how many bytes that were. Never holds more than LONGEST of them."""
    skipped = 0
    while rest := file.readline(LONGEST):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
