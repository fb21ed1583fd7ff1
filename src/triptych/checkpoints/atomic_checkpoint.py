"""Crash-safe checkpoint writes with SHA-256 manifests.

A checkpoint is a file, or a folder with a file per rank. It is written under a temporary name,
flushed to disk and renamed; its manifest, NAME.json, with its step and the size and SHA-256 of
every file, is written last. A checkpoint has its name only when it is complete, and is valid only
if it matches its manifest. The latest checkpoint is determined by run and step, never by time
stamps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from triptych.utils.atomic_write import HashingFile, commit, replacing, sync, temporary_path
from triptych.utils.documents import open_regular, read_json
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)

Notes = Mapping[str, Mapping[str, Any]]
"""Size in bytes and sha256 of each file, by name relative to the checkpoint's parent folder."""


def write(path: Path, save: Callable[[BinaryIO], None], step: int | None = None) -> None:
    """Write the checkpoint file `path`, after `step` steps, by `save(file)`.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older file stays.
    """
    partial = temporary_path(path)
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw:
            file = HashingFile(raw)
            save(file)  # type: ignore[arg-type]
            raw.flush()
            os.fsync(raw.fileno())
        _put(partial, path, {path.name: file.note()}, step)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # torch's writer replaces a disk error by an uninformative one
        cause = file.error if file is not None and file.error is not None else error
        if isinstance(cause, OSError):
            raise not_written(path, cause) from error
        raise


def commit_folder(partial: Path, path: Path, step: int | None = None) -> None:
    """Rename the complete folder `partial`, after `step` steps, to `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing frees the GIL
            notes = list(pool.map(_sync_and_note, files))
        for folder in {partial, *(file.parent for file in files)}:
            sync(folder)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        names = [f"{path.name}/{file.relative_to(partial).as_posix()}" for file in files]
        _put(partial, path, dict(zip(names, notes, strict=True)), step)
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> UserError:
    """Error for a checkpoint that could not be written to disk."""
    return UserError(
        f"{path} could not be written ({error.strerror or error}); make room or choose another "
        "folder, and resume with --ckpt_path=last: the last whole checkpoint is untouched."
    )


def check(path: Path) -> None:
    """Compare a checkpoint with its manifest; links are followed.

    Raises:
        UserError: the checkpoint does not exist, has no manifest, or is damaged.
    """
    path = path.resolve()
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist; check the path.")
    if not manifest_of(path).exists():
        raise UserError(
            f"the checkpoint {path} has no manifest: its save was cut off, or it was not made here."
        )
    try:
        notes: Notes = dict(read_json(manifest_of(path))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the manifest of the checkpoint {path} is damaged.") from error
    for name, note in notes.items():
        file = path.parent / name
        try:
            stat = file.stat()
            good = stat.st_size == note["size"]
            good = good and _file_hash(file, stat.st_size, stat.st_mtime_ns) == note["sha256"]
        except (OSError, KeyError, TypeError):
            good = False
        if not good:
            raise UserError(f"the checkpoint {path} is damaged: {name} is not as it was written.")


def latest(folders: Iterable[Path], pattern: str = "*/checkpoints/*.ckpt") -> Path | None:
    """The valid checkpoint of the highest step in the highest run under `folders`, or None.

    A damaged checkpoint is skipped with a warning.
    """
    checkpoints = [
        manifest.with_suffix("")
        for folder in folders
        for manifest in folder.glob(manifest_of(Path(pattern)).as_posix())
    ]
    for path in sorted(checkpoints, key=_order, reverse=True):
        try:
            check(path)
        except UserError as error:
            log.warning("%s The checkpoint before it is taken.", error)
        else:
            return path
    return None


def run_number(folder: Path) -> int:
    """N of a run folder version_N; -1 for any other folder."""
    number = folder.name.removeprefix("version_")
    return int(number) if number != folder.name and number.isdecimal() else -1


def in_runs(parent: Path, name: str) -> list[Path]:
    """Existing files version_N/NAME under `parent`, in the order of N."""
    runs = sorted(parent.glob("version_*"), key=run_number)
    return [run / name for run in runs if (run / name).exists()]


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first."""
    manifest_of(path).unlink(missing_ok=True)
    discard(path)


def discard(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, name: Path) -> None:
    """Make `name` a link to the checkpoint `path` in the same folder, atomically."""
    partial = temporary_path(name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(path, name.parent))
    commit(partial, name)


def link_latest(name: Path) -> None:
    """Make `name` a link to the file of that name in the highest run, version_N/NAME.

    Safe for concurrent runs without a lock: each checks again after linking, so that the last one
    has seen all of them.
    """
    while True:
        target = in_runs(name.parent, name.name)[-1]
        if name.is_symlink() and os.readlink(name) == os.path.relpath(target, name.parent):
            return
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # another run links too
            link(target, name)


def manifest_of(path: Path) -> Path:
    """Path of the manifest of a checkpoint."""
    return path.with_name(f"{path.name}.json")


def _put(partial: Path, path: Path, notes: Notes, step: int | None) -> None:
    """Rename a complete checkpoint, then write its manifest."""
    manifest = manifest_of(path)
    manifest.unlink(missing_ok=True)  # of a checkpoint of the same name
    commit(partial, path)
    sync(path.parent)
    with replacing(manifest) as file:
        file.write(json.dumps({"step": step, "files": notes}, indent=1, sort_keys=True).encode())
    sync(path.parent)


def _sync_and_note(path: Path) -> dict[str, Any]:
    sync(path)
    stat = path.stat()
    return {"size": stat.st_size, "sha256": _file_hash(path, stat.st_size, stat.st_mtime_ns)}


@lru_cache
def _file_hash(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, cached by size and modification time."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _order(path: Path) -> tuple[int, int, str]:
    """Sort key of a checkpoint: run and step, from its manifest, else from its name."""
    try:
        step = read_json(manifest_of(path))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    if not isinstance(step, int):
        digits = re.search(r"\d+", path.name)
        step = int(digits[0]) if digits else -1
    return run_number(path.parent.parent), step, path.name
