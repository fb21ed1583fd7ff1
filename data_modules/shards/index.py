"""Index of a shard: one small binary file with the places of its samples and its problems.

It is stored beside the shard as NAME.tar.idx, or in the user's cache folder if the folder of the
shards is read-only. Opening an index reads only its header; the rest is mapped into memory when a
sample is first read. See `index_format` for the bytes.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from triptych.data_modules.shards.identity import PROBE_BYTES, compute_probe
from triptych.data_modules.shards.index_format import (
    COLUMNS,
    HAS_CHECKSUMS,
    HAS_PROBE,
    HAS_TOKENS,
    HEADER,
    MAGIC,
    ROLES,
    VERSION,
    Header,
    IndexContents,
    Problem,
    encode,
    header_crc_of,
    layout_of,
)
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.tar_headers import BLOCK
from triptych.utils.records import parse

SUFFIX = ".idx"


class UnusableIndex(UserError):
    """An index that is older than its shard, or damaged; the remedy is to build it again."""


class ShardIndex:
    """Index file of a shard; use `ShardIndex.of(shard)`. Opening it reads only the header.

    Rows are the complete samples of the shard in file order. The file is mapped into memory and
    checked at its first use, and unmapped by `release`.

    Raises:
        UnusableIndex: the file is damaged.
        UserError: the file is not an index.
    """

    def __init__(self, path: Path, shard: Path) -> None:
        self.path, self.shard = path, shard
        self.mtime_changed = False
        """Whether the shard has another modification time than when it was indexed."""
        with open_regular(path) as file:
            raw = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size
        self._header = self._parse(raw, size)
        self._map: mmap.mmap | None = None
        self._checked = False  # whether the CRC of the mapped file was compared

    @classmethod
    def of(cls, shard: Path) -> ShardIndex | None:
        """Open the index of a shard; None if there is none, or none that is known to fit.

        Raises:
            UnusableIndex: it is older than the shard, or damaged.
            UserError: another file has its name, or the shard cannot be read.
        """
        fault = copy = None
        try:
            status = shard.stat()
        except OSError as error:
            raise UserError(f"the shard {shard} cannot be read: {error.strerror}.") from error
        for path in index_paths(shard):
            if not path.is_symlink() and not path.exists():
                continue
            try:
                index = cls(path, shard)
            except OSError as error:
                raise UserError(f"the index {path} cannot be read: {error.strerror}.") from error
            except UnusableIndex as error:
                fault = fault or error
                continue
            if (index.shard_size, index.mtime_ns) == (status.st_size, status.st_mtime_ns):
                return index
            if index.shard_size == status.st_size:
                if not index.probe:
                    continue  # written by an older version: it may be of another shard
                copy = copy or index
            fault = fault or UnusableIndex(
                f"the index {path} is not of the shard as it is now (its size or time differs); "
                f"run `triptych data index {shard.parent}`."
            )
        if copy is not None and copy.probe == compute_probe(shard):
            return copy._with_mtime(status.st_mtime_ns)
        if fault is not None:
            raise fault
        return None

    def _with_mtime(self, mtime_ns: int) -> ShardIndex:
        """Write the index of a copied shard with the modification time of the copy."""
        contents = replace(self.contents(), mtime_ns=mtime_ns)
        try:
            index = write_index(self.shard, contents)
        except UserError:  # a read-only folder: the probe is compared again at the next start
            index = self
        index.mtime_changed = True
        return index

    def __len__(self) -> int:
        return self._header.samples

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}  # a mapping is not picklable

    @property
    def shard_size(self) -> int:
        """Size of the shard in bytes."""
        return self._header.shard_size

    @property
    def mtime_ns(self) -> int:
        """Modification time of the shard, in ns."""
        return self._header.mtime_ns

    @property
    def probe(self) -> bytes:
        """Probe of the shard when it was indexed, see identity.py; b"" in an older index."""
        if not self._header.flags & HAS_PROBE:
            return b""
        start = self._layout["probe"]
        return self._body[start : start + PROBE_BYTES]

    @property
    def tokenizer(self) -> bytes | None:
        """Digest of the tokenizer that counted the caption tokens; None without counts."""
        return self._header.tokenizer if self._header.flags & HAS_TOKENS else None

    @property
    def checksums(self) -> np.ndarray | None:
        """uint32 [samples], CRC-32 over the members of each sample, if they were taken."""
        return self._column("checksums") if self._header.flags & HAS_CHECKSUMS else None

    @property
    def problems(self) -> list[Problem]:
        """Excluded samples, by reason; read without mapping the file."""
        if not self._header.problems_size:
            return []
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                header = self._parse(file.read(HEADER.size), size)
                file.seek(layout_of(header)["problems"])
                records = parse(file.read())
                problems = [
                    Problem(str(reason), int(n), [*map(str, keys)]) for reason, n, keys in records
                ]
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise self._damaged() from error
        return problems

    def key(self, row: int) -> str:
        """Key of a sample."""
        ends = self._rows[:, 0]
        first = self._layout["keys"] + (int(ends[row - 1]) if row else 0)
        last = self._layout["keys"] + int(ends[row])
        return self._body[first:last].decode("utf-8", "backslashreplace")

    def keys(self) -> list[str]:
        """Keys of all samples."""
        return [self.key(row) for row in range(len(self))]

    def member(self, row: int, role: str) -> tuple[int, int] | None:
        """(offset, size) in bytes of a member in the shard; None if the sample has none.

        Args:
            role: role of the member: "image", "source", "txt" or "json".
        """
        column = 1 + 2 * ROLES.index(role)
        block, size = self._rows[row, column : column + 2].tolist()
        return (block * BLOCK, size) if block else None

    def caption_lengths(self, rows: np.ndarray, tokens: bool) -> np.ndarray:
        """int64 [n], caption lengths: counted tokens, or bytes of the .txt or else the .json."""
        if tokens:
            return self._column("tokens")[rows].astype(np.int64)
        txt, json = (1 + 2 * ROLES.index(role) for role in ("txt", "json"))
        selected = self._rows[rows]
        return np.where(selected[:, txt] > 0, selected[:, txt + 1], selected[:, json + 1]).astype(
            np.int64
        )

    def contents(self) -> IndexContents:
        """Copy of the whole content."""
        body = self._body
        return IndexContents(
            self.shard_size,
            self.mtime_ns,
            self._rows.copy(),
            body[self._layout["keys"] : self._layout["probe"]],
            problems=self.problems,
            tokens=self._column("tokens").copy() if self.tokenizer else None,
            tokenizer=self._header.tokenizer,
            checksums=None if self.checksums is None else self.checksums.copy(),
            probe=self.probe,
        )

    def release(self) -> None:
        """Unmap the file; it is mapped again when it is needed."""
        self._map = None

    @property
    def _rows(self) -> np.ndarray:
        return self._column("rows").reshape(-1, COLUMNS)

    def _column(self, name: str) -> np.ndarray:
        count = len(self) * (COLUMNS if name == "rows" else 1)
        return np.frombuffer(self._body, "<u4", count, self._layout[name])

    @property
    def _body(self) -> mmap.mmap:
        if self._map is None:
            with open_regular(self.path) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = self._parse(mapped[: HEADER.size], len(mapped))
            if header != self._header:
                self._reload(header)
            with memoryview(mapped) as whole, whole[HEADER.size :] as body:
                if not self._checked and zlib.crc32(body) != header.body_crc:
                    raise self._damaged()
            self._map, self._checked = mapped, True
        return self._map

    def _reload(self, header: Header) -> None:
        """Take the header of a file that was rewritten since it was opened, e.g. with tokens."""
        same = ["shard_size", "samples", "keys_size"]
        if not header.flags & self._header.flags & HAS_PROBE:
            same.append("mtime_ns")  # a copied shard's index is written anew, see `_with_mtime`
        if any(getattr(header, name) != getattr(self._header, name) for name in same):
            raise UserError(
                f"the index {self.path} was made again, of another shard, while it was in use; "
                "start again."
            )
        self._header, self._checked = header, False

    @property
    def _layout(self) -> dict[str, int]:
        return layout_of(self._header)

    def _parse(self, raw: bytes, size: int) -> Header:
        """Parse the header of a file of `size` bytes.

        Raises:
            UnusableIndex: the header is damaged, or the file has another size than it says.
            UserError: the file is not an index.
        """
        if raw[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{self.path} is no index of triptych; move it away, then run "
                f"`triptych data index {self.shard.parent}`."
            )
        if len(raw) < HEADER.size:
            raise self._damaged()
        header = Header._make(HEADER.unpack(raw))
        if header.version != VERSION:
            raise UnusableIndex(
                f"the index {self.path} has version {header.version}, this triptych reads "
                f"{VERSION}; run `triptych data index {self.shard.parent}`."
            )
        if header.header_crc != header_crc_of(header) or size != layout_of(header)["end"]:
            raise self._damaged()
        return header

    def _damaged(self) -> UnusableIndex:
        return UnusableIndex(
            f"the index {self.path} is damaged; run `triptych data index {self.shard.parent}`."
        )


class InMemoryIndex(ShardIndex):
    """An index held in memory, without a file."""

    def __init__(self, shard: Path, contents: IndexContents) -> None:
        self.path = self.shard = shard
        self.mtime_changed = False
        self._data = encode(contents)
        self._header = self._parse(self._data[: HEADER.size], len(self._data))

    @property
    def problems(self) -> list[Problem]:
        return [Problem(*each) for each in parse(self._data[self._layout["problems"] :] or b"[]")]

    @property
    def _body(self) -> bytes:
        return self._data


def index_paths(shard: Path) -> Iterator[Path]:
    """Candidate paths of a shard's index: beside the shard, then in the user's cache folder."""
    yield Path(f"{shard}{SUFFIX}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()
    yield cache / "triptych" / "index" / f"{name}{SUFFIX}"


def write_index(shard: Path, contents: IndexContents) -> ShardIndex:
    """Write the index of a shard atomically, and open it.

    Raises:
        UserError: neither the shard's folder nor the cache folder is writable.
    """
    beside, cached = index_paths(shard)
    data = encode(contents)
    try:
        try:
            return ShardIndex(_write(beside, data), shard)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        return ShardIndex(_write(cached, data), shard)
    except OSError as error:
        raise UserError(
            f"the index of {shard} cannot be written: {error.strerror} ({error.filename}); make "
            "room there, or set XDG_CACHE_HOME to a folder that can be written to."
        ) from error


def _write(path: Path, data: bytes) -> Path:
    with replacing(path) as file:
        file.write(data)
    return path
