"""Table of a folder of images, in the layout of Hugging Face's ImageFolder: `file_name` and `text`.

metadata.csv, metadata.jsonl or captions.jsonl, in the folder itself.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from triptych.utils.errors import UserError
from triptych.utils.records import read_table

TABLES = (
    *("metadata.csv", "metadata.jsonl", "metadata.ndjson"),
    *("captions.jsonl", "captions.ndjson"),
)
CAPTIONS = ("text", "caption")  # columns, in order of preference


def find_table(folder: Path) -> Path | None:
    """Path of the table in a folder, with a case-insensitive name; None if there is none.

    Raises:
        UserError: there are several tables.
    """
    names = [name for name in os.listdir(folder) if name.lower() in TABLES]
    found = sorted(name for name in names if (folder / name).is_file())
    if len(found) > 1:
        raise UserError(
            f"the folder {folder} holds several tables, {' and '.join(found)}; keep one."
        )
    return folder / found[0] if found else None


def captioned_rows(path: Path) -> tuple[list[dict], Counter[str]]:
    """Rows of a table with an image and a caption, and numbers of other rows by reason."""
    rows, seen, left_out = [], set(), Counter()
    for row in read_table(path):
        if isinstance(row, str):
            left_out[row] += 1
        elif not isinstance(row.get("file_name"), str):
            left_out["row without file_name"] += 1
        elif caption_in(row) is None:
            left_out["row without text"] += 1
        elif row["file_name"] in seen:
            left_out["second row of one image"] += 1
        else:
            seen.add(row["file_name"])
            rows.append(row)
    return rows, left_out


def caption_in(row: dict) -> str | list | None:
    """Caption or captions of a row."""
    return next((row[name] for name in CAPTIONS if isinstance(row.get(name), str | list)), None)
