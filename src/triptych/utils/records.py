"""Rows of tables and JSON lines, with errors per row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.text import HEAD, refuse_wide

LONGEST = 1 << 20  # maximum bytes of a line, or characters of a field

DELIMITERS = {".csv": ",", ".tsv": "\t"}
NO_ROW = "row is no CSV"
NO_JSON = "record is no JSON"
NO_OBJECT = "record is no JSON object"
TOO_LONG = "record is too long"


def parse(line: bytes) -> object:
    """Parse a JSON record; bytes that are not UTF-8 become surrogates, which are invalid in texts.

    Raises:
        ValueError: it is not JSON, has a duplicate key, or is nested too deep.
    """
    try:
        text = line.decode("utf-8-sig", "surrogateescape")
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("brackets in brackets without end") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def read_table(path: Path) -> Iterator[dict[str, Any] | str]:
    """Yield rows of a CSV or TSV with column names, or of JSON lines; a reason for each bad row.

    Bytes that are not UTF-8 become surrogates, which are invalid in texts and valid in paths.

    Raises:
        UserError: the file, or the column names of a CSV, cannot be read.
    """
    try:
        with open_text(path) as file:
            if (suffix := path.suffix.lower()) in DELIMITERS:
                yield from _csv_rows(file, path, DELIMITERS[suffix])
            else:
                yield from map(_json_row, long_lines(file))
    except OSError as error:
        raise UserError(f"the table {path} cannot be read: {error.strerror}.") from error


def open_text(path: Path) -> BinaryIO:
    """Open a file of records.

    Raises:
        UserError: it cannot be opened, or is UTF-16.
    """
    with ExitStack() as opened:
        file = opened.enter_context(open_regular(path))
        refuse_wide(file.peek(HEAD), path)
        opened.pop_all()
    return file


def _csv_rows(file: BinaryIO, path: Path, delimiter: str) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))  # global, so it is only increased
    # lines end only at \n
    lines = TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="\n")
    rows = csv.DictReader(lines, delimiter=delimiter)
    try:
        rows.fieldnames  # noqa: B018 - reads the first line
    except csv.Error as error:
        raise UserError(f"the first line of {path} names no columns: {error}.") from error
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the next line begins a new row
            yield TOO_LONG if "limit" in str(error) else NO_ROW
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
    """Yield non-blank lines of a file, None for one of more than LONGEST bytes."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST and not line.endswith(b"\n"):
            skip_line(file)
            yield None
        elif line.strip():
            yield line


def skip_line(file: BinaryIO) -> int:
    """Skip to the next line; returns the number of skipped bytes. Reads at most LONGEST at once."""
    skipped = 0
    while rest := file.readline(LONGEST):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
