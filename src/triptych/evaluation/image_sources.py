"""Images to be scored, from a folder, WebDataset shards or memory, read one at a time.

Unreadable images are reported as entries without an image, so that each metric can count them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.utils.captions import captions_of
from triptych.utils.documents import (
    MIB,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
)
from triptych.utils.errors import ImageError, TextError, UserError
from triptych.utils.image_reader import DEFAULT_LIMITS, read_image
from triptych.utils.images import open_image
from triptych.utils.listing.folders import FolderSample, holds_shards, list_images
from triptych.utils.listing.names import IMAGE_SUFFIXES, kind_for
from triptych.utils.listing.shards import find_shards
from triptych.utils.listing.table import caption_in, captioned_rows, find_table
from triptych.utils.listing.tar import Group, group_members, scan, split_dotted
from triptych.utils.png_metadata import metadata_of

RESULTS = "results.jsonl"  # from `triptych generate`: one {"file": ..., "prompt": ...} per line
META = "meta_data.json"  # from MJHQ-30K: {NAME: {"category": ..., "prompt": ...}}

ImageSource = str | Path | Iterable[Image.Image]
"""A folder of images, a folder or file of WebDataset shards, or the images themselves."""


@dataclass
class Entry:
    """One image of a source."""

    key: str
    """Path below the folder; SHARD/KEY; or number of the image."""
    image: Image.Image | None
    """RGB image; None if it is missing or unreadable."""
    state: str = ""
    """Problem, "missing" or "unreadable"; empty if there is an image."""
    note: str = ""
    """Explanation of the state."""
    caption: str | None = None
    """Caption of the image, if its folder has one."""
    category: str | None = None
    """Category from the folder's metadata, or the name of the image's folder."""
    in_folder: bool = False
    """Whether the key is a path in a folder, so that a report's page can show the image."""

    def item(self, **more: Any) -> dict[str, Any]:
        """Entry of a report."""
        item = {"key": self.key, "state": self.state or "scored"}
        if self.in_folder and self.state != "missing":
            item["image"] = self.key
        optional = {"prompt": self.caption, "note": self.note or None}
        return item | {name: value for name, value in optional.items() if value is not None} | more


def read_images(source: ImageSource) -> Iterator[Entry]:
    """Read every image of a source in the order of the names, as `triptych.utils.listing` does.

    Images before an edit are excluded. In folders, captions come from `results.jsonl` or
    `meta_data.json`, else from the table (`triptych.utils.listing.table`), else from KEY.txt or
    KEY.json next to the image, else from the PNG metadata of generated images. Categories come
    from `meta_data.json`, else from the names of subfolders. In shards, names with dots are
    samples too.

    Raises:
        UserError: the folder does not exist or has no images, or one of these files is damaged.
    """
    if not isinstance(source, str | Path):
        return _from_memory(source)
    path = Path(source)
    if os.path.isdir(path) and not holds_shards(path):
        return _from_folder(path)
    return _from_shards(path, find_shards(path))


def source_name(source: ImageSource) -> str:
    """Name of a source in a report."""
    return str(source) if isinstance(source, str | Path) else "images in memory"


def count_states(entries: Iterable[Entry]) -> dict[str, int]:
    """Number of missing and of unreadable entries."""
    states = [entry.state for entry in entries]
    return {state: states.count(state) for state in ("missing", "unreadable")}


def _from_memory(images: Iterable[Image.Image]) -> Iterator[Entry]:
    for number, image in enumerate(images):
        try:
            yield Entry(str(number), read_image(image))
        except ImageError as error:
            yield Entry(str(number), None, "unreadable", str(error))


# --- folders --------------------------------------------------------------------------------------


def _from_folder(folder: Path) -> Iterator[Entry]:
    prompts = _read_results(folder / RESULTS)
    metadata = _read_meta(folder / META)
    table = _read_table(folder)
    samples = list_images(folder)
    keys = sorted({*samples, *prompts})
    if not keys:
        endings = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{folder} holds no images ({endings}) and no .tar shards.")

    def entry(key: str) -> Entry:
        sample = samples.get(key)
        return _entry(folder, key, sample, prompts=prompts, metadata=metadata, table=table)

    return map(entry, keys)


def _entry(
    folder: Path,
    key: str,
    sample: FolderSample | None,
    *,
    prompts: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, str]],
    table: Mapping[str, object],
) -> Entry:
    path = folder / key
    facts = metadata.get(path.stem, {})
    entry = Entry(
        key,
        None,
        caption=prompts.get(key, facts.get("prompt")),
        category=facts.get("category") or (path.parent.name if path.parent != folder else None),
        in_folder=True,
    )
    if not os.path.lexists(path):
        entry.state, entry.note = "missing", f"{RESULTS} names it, but it is not there"
        return entry
    try:
        entry.image = open_image(path)
    except UserError as error:
        entry.state, entry.note = "unreadable", str(error)
        return entry
    if entry.caption is None:
        try:
            if key in table:
                entry.caption = captions_of(table[key], "it")[0]
            else:
                entry.caption = _caption_beside(folder, sample) or _caption_inside(entry.image)
        except UserError as error:
            entry.note = f"its caption cannot be read: {error}"
    return entry


def _read_table(folder: Path) -> dict[str, object]:
    """Caption or captions by file name, from the table that the data loader reads too."""
    table = find_table(folder)
    rows = captioned_rows(table)[0] if table else []
    return {os.path.normpath(row["file_name"]): caption_in(row) for row in rows}


def _caption_beside(folder: Path, sample: FolderSample | None) -> str | None:
    if sample is None or sample.ambiguous:
        return None
    files = {role: sample.files[role][0] for role in ("txt", "json") if role in sample.files}
    return _caption_of({role: read_bytes(folder / name, MIB) for role, name in files.items()})


def _caption_of(texts: Mapping[str, bytes]) -> str | None:
    """First caption of a sample, from its .txt, else from "caption" in its .json.

    Raises:
        TextError: the caption is unusable.
    """
    if "txt" in texts:
        return captions_of(texts["txt"], "it")[0]
    try:
        caption = parse_json(texts["json"], "json").get("caption")
    except (KeyError, UserError):
        return None
    return captions_of(caption, "it")[0] if isinstance(caption, str | list) else None


def _caption_inside(image: Image.Image) -> str | None:
    """Prompt of a generated image, from its metadata."""
    try:
        return metadata_of(image)["prompt"]
    except (KeyError, ValueError, TypeError):
        return None


def _read_results(path: Path) -> dict[str, str]:
    """Prompt by file name."""
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
    """Category and prompt by file name without suffix."""
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
        name = shard.relative_to(source).as_posix() if os.path.isdir(source) else shard.name
        try:
            for group in split_dotted(group_members(scan(shard))):
                key = f"{name}/{group.key.decode('utf-8', 'replace')}"
                if group.fault:
                    note = f"the shard is damaged: {group.fault}"
                    yield Entry(key, None, "unreadable", note)
                elif (kind := kind_for("image", group.members)) is not None:
                    yield _sample(key, shard, group, kind)
        except (OSError, UserError) as error:
            yield Entry(name, None, "unreadable", f"the shard is damaged: {error}")


def _sample(key: str, shard: Path, group: Group, kind: str) -> Entry:
    texts = {role: group.members[role] for role in ("txt", "json") if role in group.members}
    with open_regular(shard) as file:

        def read(place: tuple[int, int], most: int) -> bytes:
            offset, size = place  # read one byte beyond the limit, so that the reader refuses it
            return os.pread(file.fileno(), min(size, most + 1), offset)

        image = read(group.members[kind], DEFAULT_LIMITS.max_bytes)
        entry = Entry(key, None)
        try:
            entry.caption = _caption_of({role: read(place, MIB) for role, place in texts.items()})
        except TextError as error:
            entry.note = f"its caption cannot be read: {error}"
    try:
        entry.image = read_image(image)
    except ImageError:
        entry.state, entry.note = "unreadable", f"its .{kind} is no image, or damaged"
    return entry
