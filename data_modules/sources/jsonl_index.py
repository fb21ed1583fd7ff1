"""Random access to JSONL records by an index of their offsets, which later runs reuse.

The index is stored at the paths of `index_paths`: an int64 table whose first row is (size, mtime in
ns, VERSION) of the file, and each other row (offset, bytes, size of its text) of a record. An index
that does not fit the file is rebuilt.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from triptych.data_modules.shards.index import index_paths
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.records import LONGEST, open_text, parse, skip_line

VERSION = 1


class JsonlIndex:
    """Records of a JSONL file; picklable, for loader workers.

    Args:
        path: JSONL file.
        measure: function from a record to the bytes of its text; called once per record.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path, measure: Callable[[object], int]) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        try:
            with open_text(path) as file:
                status = os.fstat(file.fileno())
            head = [status.st_size, status.st_mtime_ns, VERSION]
            self.table = _load(path, head)
            if self.table is None:
                self.table = _store(path, _scan(path, measure, head))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error

    def __len__(self) -> int:
        return len(self.table) - 1

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}  # open files are not picklable

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()

    @property
    def sizes(self) -> np.ndarray:
        """int64 [records], bytes of text of each record."""
        return self.table[1:, 2]

    def __getitem__(self, number: int) -> object:
        """Record `number`.

        Raises:
            ValueError: it is not JSON, or longer than LONGEST.
        """
        offset, length, _ = self.table[1 + number].tolist()
        if length > LONGEST:
            raise ValueError(f"{length:,} bytes, at most {LONGEST:,} are read")
        if self._file is None:
            self._file = open_regular(self.path)
        return parse(os.pread(self._file.fileno(), length, offset))


def _scan(path: Path, measure: Callable[[object], int], head: list[int]) -> np.ndarray:
    """Build the table of a file; blank lines are not records."""
    rows = array("q", head)
    with open_regular(path) as file:
        while True:
            offset = file.tell()
            line = file.readline(LONGEST + 1)
            if not line:
                return np.array(rows, np.int64).reshape(-1, len(head))
            if not line.endswith(b"\n") and len(line) > LONGEST:
                rows.extend((offset, len(line) + skip_line(file), 0))
            elif line.strip():
                rows.extend((offset, len(line), _text_size(line, measure)))


def _text_size(line: bytes, measure: Callable[[object], int]) -> int:
    try:
        return measure(parse(line))
    except ValueError:
        return 0


def _load(path: Path, head: list[int]) -> np.ndarray | None:
    """Memory-mapped table of an earlier run, if it is of the file as it is now."""
    for index_path in index_paths(path):
        try:
            open_regular(index_path).close()
            table = np.load(index_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # UserError too, which is a ValueError
            continue
        if table.ndim == 2 and len(table) and table.dtype == np.int64 and table[0].tolist() == head:
            return table
    return None


def _store(path: Path, table: np.ndarray) -> np.ndarray:
    """Write the table atomically; if no folder is writable, it stays in memory."""
    for index_path in index_paths(path):
        with suppress(OSError):
            with replacing(index_path, durable=False) as file:
                np.save(file, table, allow_pickle=False)
            return np.load(index_path, mmap_mode="r", allow_pickle=False)
    return table
