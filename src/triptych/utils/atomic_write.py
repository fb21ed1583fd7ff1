"""Atomic file writes, and locks that end with their process.

Several processes may write one path: each writes under a name of its own, and the rename decides.
What must have one writer is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from triptych.utils.errors import UserError

PARTIAL = ".partial"
LOCK = ".lock"
"""Name of the lock on a folder."""


def partial_name(path: Path) -> Path:
    """A temporary name beside `path` that no other writer has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path` when the block ends well, and else is removed.

    It is forced to the disk before it gets its name. Missing folders are made, see `made`.
    """
    partial = partial_name(path)
    with made(path.parent):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


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

    Where nothing was written, nothing is left of it, see `made`.

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
