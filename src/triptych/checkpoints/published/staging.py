"""Output folders that are complete or absent: written under a temporary name, then renamed.

An interrupted run leaves `NAME.partial` with complete files and a manifest of their sizes and
checksums. The same run resumes from there; another one starts over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from triptych.checkpoints.atomic_checkpoint import discard
from triptych.utils.atomic_write import LOCK, HashingFile, Lock, commit, replacing, temporary_path
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError

MANIFEST = "manifest.json"


def plan_hash(files: Iterable[Path], *more: object) -> str:
    """Hash of the inputs of a run: names, sizes and times of its files, and its options."""
    stats = [(str(path.resolve()), path.stat()) for path in sorted(set(files))]
    inputs = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr((inputs, more)).encode()).hexdigest()


def refuse_existing(target: Path) -> None:
    """Check that the target does not exist, before any work.

    Raises:
        UserError: the target exists and is not an empty folder.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; name another folder, or remove it first.")


class Staging:
    """Temporary folder with the files of `target`.

    Args:
        target: folder to create.
        plan: hash from `plan_hash`; finished files are reused only for the same plan.
        size: approximate total size in bytes.

    Raises:
        UserError: the target exists, its `.partial` folder was not created by this class, or the
            disk has too little space.
    """

    def __init__(self, target: Path, plan: str, size: int) -> None:
        refuse_existing(target)
        self.target, self.folder = target, temporary_path(target)
        self.manifest = self.folder / MANIFEST
        self.finished: dict[str, dict] = {}
        self.lock = Lock(self.folder / LOCK)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.lock.acquire():
            raise UserError(f"another process is making {target}; wait for it.")
        self._take_up(plan)
        try:
            _require_space(target, size - sum(noted["size"] for noted in self.finished.values()))
        except UserError:
            if not self.finished:
                shutil.rmtree(self.folder)
            raise
        self.plan = plan
        self._note()

    def _take_up(self, plan: str) -> None:
        try:
            manifest = read_json(self.manifest)
        except (OSError, ValueError):
            manifest = None
        own = [path for path in self.folder.iterdir() if path.name != LOCK]
        if manifest is None and own:
            self.lock.path.unlink()
            raise UserError(f"{self.folder} is in the way and not ours to delete; move it away.")
        if manifest and manifest["plan"] == plan:
            self.finished = manifest["files"]
        else:
            for path in own:
                discard(path)

    def write(self, name: str, produce: Callable[[BinaryIO], None]) -> bool:
        """Write a file by `produce(file)`; returns False if it was finished before."""
        path = self.folder / name
        if name in self.finished and self._as_noted(path, self.finished[name]):
            return False
        with replacing(path, temporary_path(path)) as file:
            hashing = HashingFile(file)
            produce(hashing)  # type: ignore[arg-type]
        self.finished[name] = hashing.note()
        self._note()
        return True

    def _as_noted(self, path: Path, noted: dict) -> bool:
        if not path.is_file() or path.stat().st_size != noted["size"]:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"]

    def _note(self) -> None:
        text = json.dumps({"plan": self.plan, "files": self.finished}, indent=1)
        with replacing(self.manifest, temporary_path(self.manifest), durable=False) as file:
            file.write(text.encode())

    def finish(self) -> None:
        """Rename the complete folder to the target."""
        refuse_existing(self.target)
        commit(self.folder, self.target)
        (self.target / MANIFEST).unlink()
        (self.target / LOCK).unlink()
        self.lock.release()


def _require_space(folder: Path, size: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"the disk of {folder} has {free / 1e9:.1f} GB left and this takes "
            f"{size / 1e9:.1f} GB; make room, or name a target on another disk."
        )
