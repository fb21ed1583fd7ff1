"""Atomic file writes, and locks that end with their process.

All files and folders that must be complete or absent get their names here. Several processes may
write one path: each writes under a name of its own, and the rename decides. What must have one
writer is locked, and has one temporary name, which the next writer finds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from triptych.utils.errors import UserError

PARTIAL = ".partial"
LOCK = ".lock"
"""Name of the lock on a folder."""


def temporary_path(path: Path) -> Path:
    """The one temporary name of `path`, for a single writer at a time."""
    return path.with_name(f"{path.name}{PARTIAL}")


def unique_temporary_path(path: Path) -> Path:
    """A temporary name beside `path` that no other writer has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def commit(partial: Path, path: Path) -> None:
    """Give a complete file, link or folder its name, in one step; a file of that name goes."""
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class AtomicFile:
    """A file to write to that takes the name `path` by `commit`, and is removed by `discard`.

    Args:
        path: the name of the complete file; its folder exists.
        partial: the temporary name; None for one that no other writer has.
        durable: force the file to the disk before it gets its name; without this, a file that
            costs little to make again may be empty after a power failure.
    """

    def __init__(self, path: Path, partial: Path | None = None, durable: bool = True) -> None:
        self.path, self.durable = path, durable
        self.partial = partial or unique_temporary_path(path)
        self.file: BinaryIO = open(self.partial, "wb")

    def commit(self) -> None:
        """Give the file its name."""
        self.file.flush()
        if self.durable:
            os.fsync(self.file.fileno())
        self.file.close()
        commit(self.partial, self.path)

    def discard(self) -> None:
        """Remove the file, unless it has its name."""
        with suppress(OSError):  # closing writes what a full disk has refused
            self.file.close()
        self.partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, partial: Path | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path` when the block ends well, and else is removed.

    Missing folders are made, see `made`; the arguments are those of `AtomicFile`.
    """
    with made(path.parent):
        file = AtomicFile(path, partial, durable)
        try:
            yield file.file
            file.commit()
        finally:
            file.discard()


@contextmanager
def saving(path: Path) -> Iterator[BinaryIO]:
    """`replacing` for a file that somebody named.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); make room or name another file."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all; its folder is made where missing.

    Raises:
        UserError: the file cannot be written.
    """
    with saving(path) as file:
        file.write(text.encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path` when the block ends well, and else is removed.

    If another process has filled `path` meanwhile, that one stays.
    """
    partial = unique_temporary_path(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            os.rename(partial, path)  # unlike a file's name, that of a full folder is not replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class HashingFile:
    """Writes to a file, and records its size, its SHA-256 and the first error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size, self.state = 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.state.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def note(self) -> dict[str, Any]:
        """Size in bytes and SHA-256 of all that was written."""
        return {"size": self.size, "sha256": self.state.hexdigest()}


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that are new and still empty are removed at the end."""
    new = [each for each in [folder, *folder.parents] if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with suppress(OSError):  # it holds something
                each.rmdir()


class Lock:
    """An exclusive lock of this process on a file, which is made; it ends with the process.

    It is a POSIX record lock: child processes do not inherit it, and it works over NFS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, seconds: float = 0) -> bool:
        """Take the lock, waiting for `seconds` at most; returns whether this process has it."""
        deadline = time.monotonic() + seconds
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        while not _locked(handle):
            if time.monotonic() >= deadline:
                os.close(handle)
                return False
            time.sleep(0.05)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock up; the file stays."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, whose files have fixed temporary names: one process writes.

    If nothing was written, the folder is removed again, see `made`.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    lock = Lock(folder / LOCK)
    with ExitStack() as stack:
        try:
            stack.enter_context(made(folder))
            held = lock.acquire()
        except OSError as error:
            raise UserError(
                f"{folder} is no folder to write to: {error.strerror}; choose another one."
            ) from error
        if not held:
            raise UserError(
                f"another process is writing to {folder}; wait for it, or choose another folder."
            )
        try:
            yield
        finally:
            lock.path.unlink(missing_ok=True)
            lock.release()


def _locked(handle: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
