"""Table of captions in a folder of images, in the layout of Hugging Face's ImageFolder.

metadata.csv, metadata.jsonl or captions.jsonl with `file_name` (a path in the folder) and `text`.
Where a folder has one, its captions are those, and no KEY.txt or KEY.json.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from .records import read_table

TABLES = ("metadata.csv", "metadata.jsonl", "captions.jsonl")
CAPTION_COLUMNS = ("text", "caption")  # the first that is there


def find_table(folder: Path) -> Path | None:
    """The table of a folder; None where it has none."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a table that have an image and a caption, and how many others, by reason.

    Raises:
        UserError: the table cannot be read.
    """
    rows, seen, left_out = [], set(), Counter()
    for row in read_table(path):
        if isinstance(row, str):
            left_out[row] += 1
        elif not isinstance(row.get("file_name"), str):
            left_out["row without file_name"] += 1
        elif caption_in(row) is None:
            left_out["row without text"] += 1
        elif row["file_name"] in seen:
            left_out["second row of one picture"] += 1
        else:
            seen.add(row["file_name"])
            rows.append(row)
    return rows, left_out


def caption_in(row: dict[str, Any]) -> str | list | None:
    """The caption of a row as it stands there, or several; see `captions.captions_of`."""
    columns = (row.get(name) for name in CAPTION_COLUMNS)
    return next((value for value in columns if isinstance(value, str | list)), None)
