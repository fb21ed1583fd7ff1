"""Standard input, output and error of a command: closed, full or cut off, no command breaks by it.

A stream that is closed when the command begins is as /dev/null. Output that cannot be written to
standard output (`triptych ... | head -1`, a full disk) is dropped, while the command continues with
what it writes to files; its exit status then says that its output was lost: 141 where the reader
had left, like a program that SIGPIPE ended, and 1 with a sentence for any other reason.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from triptych.utils.errors import UserError

READER_LEFT = 128 + 13  # what a shell reports of a program that SIGPIPE ended


class _Output(io.FileIO):
    """A descriptor to write to; keeps the first error and drops what comes after it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.lost: OSError | None = None

    def write(self, data) -> int | None:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return len(memoryview(data).cast("B"))


class _Input(io.RawIOBase):
    """A descriptor to read from; what cannot be read is the user's to mend."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            read = os.read(self.descriptor, len(buffer))
        except OSError as error:
            raise UserError(
                f"standard input cannot be read ({error.strerror}); give a file or a pipe."
            ) from error
        buffer[: len(read)] = read
        return len(read)


def run(command: Callable[[], None]) -> None:
    """Run a command with the process's own streams made safe; ends the process if output was lost.

    Raises:
        SystemExit: the command raised it, or its output was lost.
    """
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    output = _Output(1)
    sys.stdin = _text(_Input(0), sys.stdin, "strict")
    sys.stdout = _text(output, sys.stdout, "strict")
    sys.stderr = _text(_Output(2), sys.stderr, "backslashreplace")
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.stdout.flush()
    if output.lost is None:
        return
    if isinstance(output.lost, BrokenPipeError):
        sys.exit(READER_LEFT)
    print(
        f"triptych: standard output could not be written ({output.lost.strerror}); make room or "
        "send it elsewhere; files that the command wrote are kept.",
        file=sys.stderr,
    )
    sys.exit(1)


def output_lost() -> bool:
    """Whether standard output goes nowhere: for commands whose work is nothing but that."""
    binary = getattr(sys.stdout, "buffer", None)
    raw = getattr(binary, "raw", binary)
    return isinstance(raw, _Output) and raw.lost is not None


def _open_if_closed(descriptor: int) -> None:
    """Else the next file that is opened would be that stream."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def _text(raw: io.RawIOBase, before: TextIO | None, errors: str) -> io.TextIOWrapper:
    """Text over `raw`, in the way of the stream that was there `before`."""
    buffered = io.BufferedReader if raw.readable() else io.BufferedWriter
    if before is None:
        return io.TextIOWrapper(buffered(raw), "utf-8", errors, newline="\n")
    return io.TextIOWrapper(
        # as `python -u` has them
        raw if raw.writable() and before.write_through else buffered(raw),
        before.encoding,
        before.errors,
        newline="\n",
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
