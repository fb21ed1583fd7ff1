"""Atomic file writes, and locks that end with their process.

All files and folders that must be complete or absent are written here. Several processes may write
one path: each uses a unique temporary name, and the last rename wins. A path with a single writer
is locked, and has a fixed temporary name, which the next writer finds.
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
"""Name of the lock file of a folder."""


def temporary_path(path: Path) -> Path:
    """Fixed temporary path of `path`, for a single writer at a time."""
    return path.with_name(f"{path.name}{PARTIAL}")


def unique_temporary_path(path: Path) -> Path:
    """Unique temporary path in the folder of `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def commit(partial: Path, path: Path) -> None:
    """Rename a complete file, link or folder atomically, replacing a file of that name."""
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class AtomicFile:
    """A temporary file that `commit` renames to `path`, and `discard` removes.

    Args:
        path: path of the complete file, in an existing folder.
        partial: temporary path; None for a unique one.
        durable: whether to flush the file to disk before the rename; without this, the file may be
            empty after a power failure.
    """

    def __init__(self, path: Path, partial: Path | None = None, durable: bool = True) -> None:
        self.path, self.durable = path, durable
        self.partial = partial or unique_temporary_path(path)
        self.file: BinaryIO = open(self.partial, "wb")

    def commit(self) -> None:
        """Rename the file to its path."""
        self.file.flush()
        if self.durable:
            os.fsync(self.file.fileno())
        self.file.close()
        commit(self.partial, self.path)

    def discard(self) -> None:
        """Remove the file, unless it was committed."""
        with suppress(OSError):  # closing flushes, which fails on a full disk
            self.file.close()
        self.partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, partial: Path | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` if the block succeeds, and else is removed.

    Missing folders are created, see `created`; the arguments are those of `AtomicFile`.
    """
    with created(path.parent):
        file = AtomicFile(path, partial, durable)
        try:
            yield file.file
            file.commit()
        finally:
            file.discard()


@contextmanager
def saving(path: Path) -> Iterator[BinaryIO]:
    """`replacing` for a file that the user named.

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
    """Write a text file atomically; create its folder if it is missing.

    Raises:
        UserError: the file cannot be written.
    """
    with saving(path) as file:
        file.write(text.encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder that is renamed to `path` if the block succeeds, and else removed.

    If another process has created `path` meanwhile, that one is kept.
    """
    partial = unique_temporary_path(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            os.rename(partial, path)  # a non-empty folder is not replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class HashingFile:
    """File wrapper that records the size, the SHA-256 and the first disk error of writes."""

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
        """Size in bytes and SHA-256 of the written data."""
        return {"size": self.size, "sha256": self.state.hexdigest()}


@contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; new ones that are still empty are removed at the end."""
    new = [each for each in [folder, *folder.parents] if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()


class Lock:
    """An exclusive lock of this process on a file, which is created; it ends with the process.

    A POSIX record lock: child processes do not inherit it, and it works over NFS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, seconds: float = 0) -> bool:
        """Acquire the lock, waiting at most `seconds`; returns whether this process has it."""
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
        """Release the lock; the file stays."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created, for a single writing process.

    If nothing was written, the folder is removed, see `created`.

    Raises:
        UserError: another process has the lock, or the folder is not writable.
    """
    lock = Lock(folder / LOCK)
    with ExitStack() as stack:
        try:
            stack.enter_context(created(folder))
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
