"""Files of a folder, and its images and captioned samples.

Hidden files and folders are skipped (`names.is_hidden`), subfolders are included, links are
followed, and paths are sorted by code points.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych.utils.errors import UserError
from triptych.utils.listing.names import (
    IMAGE_SUFFIXES,
    KINDS,
    OTHER_SUFFIXES,
    is_hidden,
    kind_for,
    split_at_kind,
)

log = logging.getLogger(__name__)

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")
DATA_SUFFIXES = (SHARD_SUFFIX, *IMAGE_SUFFIXES, *TEXT_SUFFIXES, ".parquet", ".arrow")
"""Suffixes of data set files."""
SHEET = "grid.png"  # grid of images by `triptych generate` and GenEval, not a sample

SECOND_IMAGE = "second image of one caption"
TWO_CAPTIONS = "image with two captions that differ in case"
NO_CAPTION = "image without a caption"
NO_IMAGE = "caption without an image"


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield (path in the folder, bytes) of all files that are not hidden, in no order.

    A folder with several links to it, or that contains itself, is entered once. Broken links, named
    pipes and the like have 0 bytes: readers refuse them by name.

    Raises:
        UserError: a folder cannot be listed.
    """
    yield from _walk(str(folder), "", set())


def _walk(folder: str, inside: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    try:
        status = os.stat(os.path.join(folder, inside))
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(os.path.join(folder, inside)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"the folder {Path(folder, inside)} cannot be listed ({error.strerror}); "
            "check the path and who may read it."
        ) from error
    # real folders first: their files must not get the path of a link
    for entry in sorted(entries, key=lambda entry: entry.is_symlink()):
        if is_hidden(os.fsencode(entry.name)):
            continue
        name = f"{inside}{entry.name}"
        try:
            is_folder = entry.is_dir()
            size = entry.stat().st_size if not is_folder and entry.is_file() else 0
        except OSError:  # a link to itself, or one that may not be followed
            is_folder, size = False, 0
        if is_folder:
            yield from _walk(folder, f"{name}/", seen)
        else:
            yield name, size


def files_of(folder: Path, *suffixes: str) -> list[str]:
    """Sorted paths of files with one of the lower-case suffixes, such as ".tar".

    Raises:
        UserError: a folder cannot be listed.
    """
    return sorted(name for name, _ in walk(folder) if name.lower().endswith(suffixes))


@dataclass
class FolderSample:
    """Files of one key in a folder: an image and its companions."""

    key: str
    """Path in the folder, without the suffix of its image."""
    files: dict[str, tuple[str, int]]
    """(path in the folder, bytes) by role of `names.KINDS`; "image" always exists."""
    others: list[str]
    """Further images of the key, without a role."""
    ambiguous: bool = False
    """Whether two captions differ only in the case of their suffix."""


def list_samples(folder: Path) -> tuple[list[FolderSample], Counter[str]]:
    """Samples with an image, with or without caption, sorted by key; and skipped files by reason.

    Captions without an image, and images of unsupported formats, are skipped.

    "KEY.source.jpg" is a source only if KEY has an image too, and "KEY.target.jpg" an image of KEY
    only if KEY has a source, a caption or JSON; else they are images with their full names as keys.

    Raises:
        UserError: a folder cannot be listed.
    """
    groups: dict[str, dict[str, list[tuple[str, int]]]] = {}
    left_out: Counter[str] = Counter()
    for name, size in sorted(walk(folder)):
        key, kind = split_at_kind(os.fsencode(name))
        suffix = os.path.splitext(name)[1].lower()
        if suffix in OTHER_SUFFIXES:
            left_out[f"{suffix}, a format that is not read"] += 1
        elif key:
            groups.setdefault(os.fsdecode(key), {}).setdefault(kind, []).append((name, size))
    for key in list(groups):
        _take_apart(groups, key)
    samples = []
    for key, files in sorted(groups.items()):
        chosen = {role: kind_for(role, files) for role in KINDS}
        if chosen["image"] is None:
            left_out[NO_IMAGE] += "txt" in files
            continue
        roles = {role: files[kind][0] for role, kind in chosen.items() if kind}
        taken = {name for name, _ in roles.values()}
        images = [kind for kind in files if kind in (*KINDS["image"], *KINDS["source"])]
        others = [name for kind in images for name, _ in files[kind] if name not in taken]
        twice = any(len(files.get(kind, ())) > 1 for kind in ("txt", "json"))
        samples.append(FolderSample(key, roles, others, twice))
    return samples, +left_out


def _take_apart(groups: dict[str, dict[str, list[tuple[str, int]]]], key: str) -> None:
    """Use the full names as keys of images that do not belong to an edit."""
    files = groups[key]
    has = {role: kind_for(role, files) is not None for role in KINDS}
    for word, belongs in (
        ("source", has["image"]),
        ("target", has["source"] or has["txt"] or has["json"]),
    ):
        for kind in [] if belongs else [kind for kind in files if kind.startswith(f"{word}.")]:
            for name, size in files.pop(kind):
                stem = name[: -len(kind) + len(word)]
                whole = groups.setdefault(stem, {})
                whole.setdefault(kind.partition(".")[2], []).append((name, size))
    if not files:
        del groups[key]


def captioned(folder: Path) -> tuple[list[FolderSample], Counter[str]]:
    """Samples with a caption or JSON, sorted by key; and numbers of skipped files by reason.

    Raises:
        UserError: a folder cannot be listed.
    """
    found, left_out = list_samples(folder)
    samples = []
    for sample in found:
        left_out[SECOND_IMAGE] += len(sample.others)
        if sample.ambiguous:
            left_out[TWO_CAPTIONS] += 1
        elif "txt" in sample.files or "json" in sample.files:
            samples.append(sample)
        else:
            left_out[NO_CAPTION] += 1
    return samples, +left_out


def list_images(folder: Path) -> dict[str, FolderSample]:
    """Sample of each image by its path in the folder, sorted; without sources of edits.

    Images of unsupported formats are logged.

    Raises:
        UserError: a folder cannot be listed.
    """
    found = {}
    samples, left_out = list_samples(folder)
    del left_out[NO_IMAGE]
    if left_out:
        log.warning("%s: left out: %s", folder, counted(left_out))
    for sample in samples:
        for name in (sample.files["image"][0], *sample.others):
            if os.path.basename(name) != SHEET:
                found[name] = sample
    return dict(sorted(found.items()))


def counted(left_out: Counter[str]) -> str:
    """Format the number of skipped files for each reason."""
    return ", ".join(f"{number} {reason}" for reason, number in (+left_out).items())


def holds_shards(folder: Path) -> bool:
    """Whether a folder is one of tar shards, not of images; logged if it has both.

    It is if a shard is directly in it, or if there are shards below it and no images.

    Raises:
        UserError: a folder cannot be listed.
    """
    names = files_of(folder, SHARD_SUFFIX, *IMAGE_SUFFIXES)
    shards = [name for name in names if name.lower().endswith(SHARD_SUFFIX)]
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    chosen = bool(shards) and (not images or any("/" not in shard for shard in shards))
    if shards and images:
        what, others = ("images", images) if chosen else ("shards", shards)
        log.warning(
            "%s holds shards and images: its %d %s are not read, %s for one; give each a folder",
            *(folder, len(others), what, others[0]),
        )
    return chosen
