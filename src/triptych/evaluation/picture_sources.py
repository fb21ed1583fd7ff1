"""Pictures to be scored, of a folder, of WebDataset shards or from memory, read one at a time.

What cannot be read is handed on as such, so that whoever scores names and counts it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from triptych.contracts import UserError
from triptych.documents import (
    MIB,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
)
from triptych.errors import PictureError, TextError
from triptych.image_reader import DEFAULT_LIMITS, read_image
from triptych.listing.captions import captions_in, captions_of
from triptych.listing.folders import FolderSample, holds_shards, list_images
from triptych.listing.names import IMAGE_SUFFIXES, is_inside, kind_for
from triptych.listing.shards import find_shards
from triptych.listing.tables import caption_in, find_table, read_rows
from triptych.listing.tar import Group, groups, mended, scan
from triptych.picture_settings import CHUNK
from triptych.pictures import open_picture

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"  # of `triptych generate`: one {"file": ..., "prompt": ...} a line
META = "meta_data.json"  # of MJHQ-30K: {NAME: {"category": ..., "prompt": ...}}

Source = str | Path | Iterable[Image.Image]
"""A folder of pictures, a folder or file of WebDataset shards, or the pictures themselves."""


@dataclass
class Entry:
    """One picture of a source."""

    key: str
    """Its path below the folder; SHARD/KEY; or its number."""
    picture: Image.Image | None
    """In RGB; None if it is missing or unreadable."""
    state: str = ""
    """Why there is none: "missing" or "unreadable"."""
    note: str = ""
    """The same at length."""
    caption: str | None = None
    """What it shows or should show, where its folder says so."""
    category: str | None = None
    """The one that its folder names, or stands for."""
    in_folder: bool = False
    """So that a report's page can show it."""

    def item(self, **more: Any) -> dict[str, Any]:
        """What a report says of it."""
        said = {"key": self.key, "state": self.state or "scored"}
        if self.in_folder and self.state != "missing":
            said["picture"] = self.key
        named = {"prompt": self.caption, "note": self.note or None}
        return said | {name: value for name, value in named.items() if value is not None} | more


def read_pictures(source: Source) -> Iterator[Entry]:
    """Every picture of a source, in the order of the names, as `triptych.listing` finds them.

    Sources of edits are none. Folders: captions are taken from `results.jsonl` or
    `meta_data.json` in the folder, else as the loader takes them (`triptych.listing`: from its
    table, where it has one, else from KEY.txt or KEY.json), else from the settings that a PNG
    of ours carries. Categories are those of `meta_data.json`, else the names of the folders
    that pictures lie in. Shards: names with dots in them are samples, too.

    Raises:
        UserError: there is no such folder, it holds no pictures, or a list in it is damaged.
    """
    if not isinstance(source, str | Path):
        return _from_memory(source)
    path = Path(source)
    if path.is_dir() and not holds_shards(path):
        return _from_folder(path)
    return _from_shards(path, find_shards(path))


def source_name(source: Source) -> str:
    """What a report calls it."""
    return str(source) if isinstance(source, str | Path) else "pictures in memory"


def count_states(entries: Iterable[Entry]) -> dict[str, int]:
    """How many of the entries are missing and how many unreadable."""
    states = [entry.state for entry in entries]
    return {state: states.count(state) for state in ("missing", "unreadable")}


def _from_memory(pictures: Iterable[Image.Image]) -> Iterator[Entry]:
    for number, picture in enumerate(pictures):
        try:
            yield Entry(str(number), read_image(picture))
        except PictureError as error:
            yield Entry(str(number), None, "unreadable", str(error))


# --- folders --------------------------------------------------------------------------------------


def _from_folder(folder: Path) -> Iterator[Entry]:
    lists = _Lists.of(folder)
    found = list_images(folder)
    keys = sorted({*found, *lists.keys})
    if not keys:
        endings = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{folder} holds no pictures ({endings}) and no .tar shards.")
    return (_entry(folder, key, found.get(key), lists) for key in keys)


@dataclass
class _Lists:
    """Captions and categories that files of a folder give to its images."""

    prompts: Mapping[str, str]
    """Path in the folder -> prompt, of `results.jsonl`."""
    known: Mapping[str, Mapping[str, str]]
    """Name without suffix -> {"category", "prompt"}, of `meta_data.json`."""
    table: Path | None
    """As the loader's; its captions stand for those beside the images."""
    rows: Mapping[str, str | list]
    """Path in the folder -> caption, as it stands in the table."""

    @classmethod
    def of(cls, folder: Path) -> _Lists:
        table = find_table(folder)
        found: list[dict[str, Any]] = []
        if table is not None:
            found, left_out = read_rows(table)
            if left_out:
                counts = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
                log.warning("%s: left out: %s", table, counts)
        rows = {PurePosixPath(row["file_name"]).as_posix(): caption_in(row) for row in found}
        return cls(_read_results(folder / RESULTS), _read_meta(folder / META), table, rows)

    @property
    def keys(self) -> set[str]:
        """The images that they name."""
        return {*self.prompts, *self.rows}

    def name_of(self, key: str) -> str:
        """The list that names an image."""
        return RESULTS if key in self.prompts or self.table is None else self.table.name


def _entry(folder: Path, key: str, sample: FolderSample | None, lists: _Lists) -> Entry:
    path = folder / key
    facts = lists.known.get(path.stem, {})
    entry = Entry(
        key,
        None,
        caption=lists.prompts.get(key, facts.get("prompt")),
        category=facts.get("category") or (path.parent.name if path.parent != folder else None),
        in_folder=True,
    )
    if not is_inside(key):
        entry.state, entry.in_folder = "unreadable", False
        entry.note = f"{lists.name_of(key)} names it, but it lies outside of the folder"
        return entry
    if not os.path.lexists(path):
        entry.state, entry.note = "missing", f"{lists.name_of(key)} names it, but it is not there"
        return entry
    try:
        entry.picture = open_picture(path)
    except UserError as error:
        entry.state, entry.note = "unreadable", str(error)
        return entry
    if entry.caption is None:
        try:
            if lists.table is None:
                found = _captions_beside(folder, sample)
            else:
                found = captions_of(lists.rows[key]) if key in lists.rows else []
            entry.caption = found[0] if found else _caption_inside(entry.picture)
        except UserError as error:
            entry.note = f"its caption cannot be read: {error}"
    return entry


def _captions_beside(folder: Path, sample: FolderSample | None) -> list[str]:
    if sample is None or sample.ambiguous:
        return []

    def read(role: str) -> bytes | None:
        return read_bytes(folder / sample.files[role][0], MIB) if role in sample.files else None

    return captions_in(read)


def _caption_inside(picture: Image.Image) -> str | None:
    """Of a picture that `UnifiedPipeline.generate` made."""
    try:
        return parse_json(picture.info[CHUNK], CHUNK)["prompt"]
    except (KeyError, ValueError, TypeError):
        return None


def _read_results(path: Path) -> dict[str, str]:
    """File -> prompt."""
    if not path.is_file():
        return {}
    try:
        read = (line for _, line in read_json_lines(read_text(path), path))
        return {line["file"]: line["prompt"] for line in read}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is damaged ({error!r}); each line is {{"file": ..., "prompt": ...}}.'
        ) from error


def _read_meta(path: Path) -> dict[str, dict[str, str]]:
    """Name without ending -> {"category", "prompt"}."""
    if not path.is_file():
        return {}
    try:
        read = read_json(path)
        return {
            name: {key: facts[key] for key in ("category", "prompt")}
            for name, facts in read.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} is damaged ({error!r}); it is {{NAME: {{"category": ..., "prompt": ...}}}}.'
        ) from error


# --- shards ---------------------------------------------------------------------------------------


def _from_shards(source: Path, shards: list[Path]) -> Iterator[Entry]:
    for shard in shards:
        name = shard.relative_to(source).as_posix() if source.is_dir() else shard.name
        try:
            for group in mended(groups(scan(shard))):
                key = f"{name}/{group.key.decode('utf-8', 'replace')}"
                if group.fault:
                    note = f"the shard is damaged: {group.fault}"
                    yield Entry(key, None, "unreadable", note)
                elif (kind := kind_for("picture", group.members)) is not None:
                    yield _sample(key, shard, group, kind)
        except (OSError, UserError) as error:
            yield Entry(name, None, "unreadable", f"the shard is damaged: {error}")


def _sample(key: str, shard: Path, group: Group, kind: str) -> Entry:
    with open_regular(shard) as file:

        def read(place: tuple[int, int], most: int) -> bytes:
            offset, size = place  # a byte more than may be, so that the reader says so
            return os.pread(file.fileno(), min(size, most + 1), offset)

        picture = read(group.members[kind], DEFAULT_LIMITS.max_bytes)
        entry = Entry(key, None)
        try:
            captions = captions_in(
                lambda role: read(group.members[role], MIB) if role in group.members else None
            )
            entry.caption = captions[0] if captions else None
        except TextError as error:
            entry.note = f"its caption cannot be read: {error}"
    try:
        entry.picture = read_image(picture)
    except PictureError:
        entry.state, entry.note = "unreadable", f"its .{kind} is no picture, or damaged"
    return entry
