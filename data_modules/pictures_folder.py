"""A plain folder of pictures with captions.

Either KEY.txt beside each picture, in sub-folders too, or one table in the layout of Hugging Face's
ImageFolder: metadata.csv, metadata.jsonl or captions.jsonl, with `file_name` and `text`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from triptych.contracts import UserError

from .files import MAX_PICTURE_BYTES, MAX_TEXT_BYTES, read_inside
from .records import read_table
from .source import BadSample, ImageRole, Source

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TABLES = ("metadata.csv", "metadata.jsonl", "captions.jsonl")
CAPTIONS = ("text", "caption")  # columns, the first that is there


class PictureFolder(Source):
    """Pictures with captions, in the order of their names or of the table's rows.

    Keys are the pictures' paths in the folder, without the ending. The names of all pictures, and
    a table, are held in memory: for more than a few million pictures use shards.

    Args:
        path: the folder.
        max_picture_bytes: a larger picture is a bad sample, and is not read.

    Raises:
        UserError: there is no such folder, or no picture with a caption in it.
    """

    def __init__(self, path: str | Path, max_picture_bytes: int = MAX_PICTURE_BYTES) -> None:
        self.path, self.name = Path(path), str(path)
        self.max_picture_bytes = max_picture_bytes
        self._names: list[str] = []
        self._rows: list[dict] | None = None  # of the table
        self._sizes = np.zeros(0, np.int64)

    def open(self) -> PictureFolder:
        if self._names:
            return self
        if not self.path.is_dir():
            raise UserError(f"the folder of pictures {self.path} does not exist.")
        table = next((self.path / name for name in TABLES if (self.path / name).is_file()), None)
        names, rows, sizes, left_out = _of_files(self.path) if table is None else _of_table(table)
        if not names:
            raise UserError(
                f"the folder {self.path} holds no picture (jpg, png or webp) with a caption: put "
                f"KEY.txt beside KEY.jpg, or name both in {TABLES[0]} (file_name,text)."
            )
        if left_out.total():
            counts = ", ".join(f"{number} {reason}" for reason, number in (+left_out).items())
            log.warning("%s: left out: %s", self.path, counts)
        self._names, self._rows, self._sizes = names, rows, np.array(sizes, np.int64)
        return self

    def __len__(self) -> int:
        return len(self._names)

    def key(self, number: int) -> str:
        return _stem(self._names[number])

    def caption(self, number: int) -> str:
        if self._rows is not None:
            return _caption(self._rows[number]).strip()
        name = f"{_stem(self._names[number])}.txt"
        text = read_inside(self.path, name, self.key(number), "caption", MAX_TEXT_BYTES)
        return text.decode("utf-8", "replace").strip()

    def facts(self, number: int) -> dict:
        """The columns of the table."""
        return {} if self._rows is None else self._rows[number]

    def image(self, number: int, role: ImageRole = "picture") -> bytes:
        key = self.key(number)
        if role != "picture":
            raise BadSample(key, f"no {role}")
        return read_inside(self.path, self._names[number], key, role, self.max_picture_bytes)

    def caption_sizes(self, numbers: np.ndarray) -> np.ndarray:
        """In bytes."""
        return self._sizes[np.asarray(numbers)]


Found = tuple[list[str], list[dict] | None, list[int], Counter[str]]
"""Names of pictures, rows of the table, bytes of captions, what is left out and how often."""


def _of_files(folder: Path) -> Found:
    pictures: dict[str, str] = {}
    captions: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for name, size in sorted(_walk(folder)):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == ".txt":
            captions[_stem(name)] = size
        elif suffix in SUFFIXES and _stem(name) in pictures:
            left_out["second picture of one caption"] += 1
        elif suffix in SUFFIXES:
            pictures[_stem(name)] = name
    left_out["picture without a caption"] = sum(stem not in captions for stem in pictures)
    stems = [stem for stem in pictures if stem in captions]
    return [pictures[stem] for stem in stems], None, [captions[stem] for stem in stems], left_out


def _walk(folder: Path, inside: str = "") -> Iterator[tuple[str, int]]:
    """(path in the folder, bytes) of all files that are not hidden."""
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # links may lead in a circle
                yield from _walk(folder, f"{name}/")
            elif entry.is_file():
                yield name, entry.stat().st_size


def _of_table(path: Path) -> Found:
    rows, seen, left_out = [], set(), Counter()
    for row in read_table(path):
        if isinstance(row, str):
            left_out[row] += 1
        elif not isinstance(row.get("file_name"), str):
            left_out["row without file_name"] += 1
        elif _caption(row) is None:
            left_out["row without text"] += 1
        elif _stem(row["file_name"]) in seen:
            left_out["second row of one picture"] += 1
        else:
            seen.add(_stem(row["file_name"]))
            rows.append(row)
    names = [row["file_name"] for row in rows]
    return names, rows, [len(_caption(row).encode("utf-8", "replace")) for row in rows], left_out


def _caption(row: dict) -> str | None:
    return next((row[name] for name in CAPTIONS if isinstance(row.get(name), str)), None)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
