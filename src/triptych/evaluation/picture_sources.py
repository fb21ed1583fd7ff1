"""Pictures to be scored, of a folder, of WebDataset shards or from memory, read one at a time.

What cannot be read is handed on as such, so that whoever scores names and counts it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.contracts import UserError
from triptych.documents import MIB, open_regular, parse_json, read_bytes, read_json, read_text
from triptych.errors import PictureError
from triptych.image_reader import DEFAULT_LIMITS, read_image
from triptych.picture_settings import CHUNK
from triptych.pictures import open_picture

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RESULTS = "results.jsonl"  # of `triptych generate`: one {"file": ..., "prompt": ...} a line
META = "meta_data.json"  # of MJHQ-30K: {NAME: {"category": ..., "prompt": ...}}
SHEET = "grid.png"  # of `triptych generate` and GenEval: pictures in one, no picture to score

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
    """Every picture of a source, in the order of the names.

    Folders: pictures anywhere below it. Captions are taken from `results.jsonl` or
    `meta_data.json` in the folder, else from a .txt file beside a picture, else from the settings
    that a PNG of ours carries. Categories are those of `meta_data.json`, else the names of the
    folders that pictures lie in.

    Raises:
        UserError: there is no such folder, it holds no pictures, or a list in it is damaged.
    """
    if not isinstance(source, str | Path):
        return _from_memory(source)
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of pictures or of shards.")
    shards = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if shards:
        return _from_shards(shards)
    return _from_folder(path)


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
    prompts = _read_results(folder / RESULTS)
    known = _read_meta(folder / META)
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and path.name[0] != "." and path.name != SHEET
    }
    keys = sorted(found | set(prompts))
    if not keys:
        raise UserError(f"{folder} holds no pictures ({', '.join(ENDINGS)}) and no .tar shards.")
    return (_entry(folder, key, prompts, known) for key in keys)


def _entry(
    folder: Path, key: str, prompts: Mapping[str, str], known: Mapping[str, Mapping[str, str]]
) -> Entry:
    path = folder / key
    facts = known.get(path.stem, {})
    entry = Entry(
        key,
        None,
        caption=prompts.get(key, facts.get("prompt")),
        category=facts.get("category") or (path.parent.name if path.parent != folder else None),
        in_folder=True,
    )
    if not path.is_file():
        entry.state, entry.note = "missing", f"{RESULTS} names it, but it is not there"
        return entry
    try:
        entry.picture = open_picture(path)
    except UserError as error:
        entry.state, entry.note = "unreadable", str(error)
        return entry
    if entry.caption is None:
        entry.caption = _caption_beside(path) or _caption_inside(entry.picture)
    return entry


def _caption_beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return read_bytes(text, MIB).decode("utf-8", "replace").strip() if text.is_file() else None


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
        lines = filter(str.strip, read_text(path).splitlines())
        read = (parse_json(line, path) for line in lines)
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


def _from_shards(shards: list[Path]) -> Iterator[Entry]:
    for shard in shards:
        try:
            for key, files in groupby(_files(shard), lambda file: _key(file[0])):
                if (entry := _sample(f"{shard.name}/{key}", dict(files))) is not None:
                    yield entry
        except (OSError, UserError, tarfile.TarError) as error:
            yield Entry(shard.name, None, "unreadable", f"the shard is damaged: {error}")


def _files(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(Name, content) of the files of a .tar; webdataset ends at a cut without a word."""
    with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isfile():  # one byte more than may be, so that the reader says so
                content = archive.extractfile(member).read(DEFAULT_LIMITS.max_bytes + 1)
                yield member.name, content
        if shard.stat().st_size < archive.offset + tarfile.BLOCKSIZE:  # no empty block ends it
            raise tarfile.ReadError("it is cut off")


def _key(name: str) -> str:
    """What the files of a sample share: the path up to the first dot of the name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sample(key: str, files: Mapping[str, bytes]) -> Entry | None:
    """None for a sample without a picture."""
    by_ending = {f".{name.rpartition('.')[2].lower()}": content for name, content in files.items()}
    ending = next((each for each in ENDINGS if each in by_ending), None)
    if ending is None:
        return None
    text = by_ending.get(".txt")
    entry = Entry(key, None)
    if text is not None:
        entry.caption = text.decode("utf-8", "replace").strip()
    try:
        entry.picture = read_image(by_ending[ending])
    except PictureError:
        entry.state, entry.note = "unreadable", f"its {ending} is no picture, or damaged"
    return entry
