"""Index of a shard: one small binary file with the places of its samples and its problems.

It is stored beside the shard as NAME.tar.idx, or in the user's cache folder where the shards
cannot be written to. Opening one reads only its header; the rest is mapped into memory when a
sample is first read. All numbers are little-endian:

    header    72 bytes, see `_HEADER`
    rows      uint32 [samples, 9]: where the key ends in the keys, then for each role in KINDS
              (image, source, txt, json) the first block of 512 bytes and the size in bytes;
              block 0 stands for a member that is not there
    tokens    uint32 [samples], tokens of each caption; only if they were counted
    checksums uint32 [samples], CRC-32 over all members of a sample; only if they were requested
    keys      the keys, one after the other, as the archive has them
    probe     16 bytes, see identity.py; where the shard was read by a triptych that takes it
    problems  JSON, [[reason, samples, [some of their keys]], ...]; nothing where all is well
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triptych.data_modules.shards.identity import PROBE_BYTES, compute_probe
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.names import KINDS
from triptych.utils.listing.tar import BLOCK
from triptych.utils.records import parse

SUFFIX = ".idx"
MAGIC = b"TRIPTIDX"
VERSION = 1
ROLES = tuple(KINDS)
COLUMNS = 1 + 2 * len(ROLES)


class Problem(NamedTuple):
    """Samples that the index excludes."""

    reason: str
    samples: int
    keys: list[str]
    """Keys of the first few."""


class UnusableIndex(UserError):
    """An index of ours that is older than its shard, or damaged; making it again is the remedy."""


@dataclass
class IndexContents:
    """Content of an index file."""

    shard_size: int
    """Bytes of the shard when it was read."""
    mtime_ns: int
    """And its time of change."""
    rows: np.ndarray
    keys: bytes
    problems: list[Problem] = field(default_factory=list)
    tokens: np.ndarray | None = None
    tokenizer: bytes = b"\0" * 8
    """Digest of the tokenizer that counted `tokens`, see columns.py."""
    checksums: np.ndarray | None = None
    probe: bytes = b""
    """Probe of the shard, see identity.py."""


class _Header(NamedTuple):
    magic: bytes
    version: int
    header_crc: int  # of the header, with this field as zero
    body_crc: int  # of all behind the header
    flags: int
    tokenizer: bytes
    shard_size: int
    mtime_ns: int
    samples: int
    keys_size: int
    problems_size: int


_HEADER = struct.Struct("<8sIIII8sqqQQQ")
_TOKENS, _CHECKSUMS, _PROBE = 1, 2, 4  # flags


class ShardIndex:
    """An index file of which only the header is read on opening; use `ShardIndex.of(shard)`.

    Rows are the complete samples of the shard in file order. Columns are mapped into memory
    at their first use, checked once, and let go by `release`.

    Raises:
        UnusableIndex: the file is damaged.
        UserError: the file is not an index of ours.
    """

    def __init__(self, path: Path, shard: Path) -> None:
        self.path, self.shard = path, shard
        self.renewed = False
        """Whether the shard has another time stamp than when it was indexed."""
        with open_regular(path) as file:
            raw = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
        self._header = self._parse(raw, size)
        self._map: mmap.mmap | None = None
        self._checked = False  # the whole file, once

    @classmethod
    def of(cls, shard: Path) -> ShardIndex | None:
        """The index of a shard, None where there is none yet, or none that can be known to fit.

        Raises:
            UnusableIndex: it is older than the shard, or damaged.
            UserError: something else has its name, or the shard cannot be read.
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
                found = cls(path, shard)
            except OSError as error:
                raise UserError(f"the index {path} cannot be read: {error.strerror}.") from error
            except UnusableIndex as error:
                fault = fault or error
                continue
            if (found.shard_size, found.mtime_ns) == (status.st_size, status.st_mtime_ns):
                return found
            if found.shard_size == status.st_size:
                if not found.probe:
                    continue  # of a triptych that took none: whether it fits cannot be known
                copy = copy or found
            fault = fault or UnusableIndex(
                f"the index {path} is not of the shard as it is now (its size or time differs); "
                f"run `triptych data index {shard.parent}`."
            )
        if copy is not None and copy.probe == compute_probe(shard):
            return copy._renew(status.st_mtime_ns)
        if fault is not None:
            raise fault
        return None

    def _renew(self, mtime_ns: int) -> ShardIndex:
        """The index of a shard that was copied, with its new time, so that it is known again."""
        contents = replace(self.contents(), mtime_ns=mtime_ns)
        try:
            index = write_index(self.shard, contents)
        except UserError:  # no place to write to: found out anew at the next start
            index = self
        index.renewed = True
        return index

    def __len__(self) -> int:
        return self._header.samples

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}  # a mapping does not travel to loader workers

    @property
    def shard_size(self) -> int:
        """Bytes of the shard."""
        return self._header.shard_size

    @property
    def mtime_ns(self) -> int:
        """Time of change of the shard, in ns."""
        return self._header.mtime_ns

    @property
    def probe(self) -> bytes:
        """Probe of the shard when it was read, see identity.py; b"" in an index that has none."""
        if not self._header.flags & _PROBE:
            return b""
        start = self._layout["probe"]
        return self._body[start : start + PROBE_BYTES]

    @property
    def tokenizer(self) -> bytes | None:
        """Digest of the tokenizer that counted the tokens of the captions, None if none did."""
        return self._header.tokenizer if self._header.flags & _TOKENS else None

    @property
    def checksums(self) -> np.ndarray | None:
        """uint32 [samples], CRC-32 over the members of each sample, if they were taken."""
        return self._column("checksums") if self._header.flags & _CHECKSUMS else None

    @property
    def problems(self) -> list[Problem]:
        """Excluded samples, by reason; read without mapping the rest."""
        if not self._header.problems_size:
            return []
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                header = self._parse(file.read(_HEADER.size), size)
                file.seek(_layout(header)["problems"])
                found = parse(file.read())
                problems = [Problem(str(why), int(n), [*map(str, keys)]) for why, n, keys in found]
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise self._damaged() from error
        return problems

    def key(self, row: int) -> str:
        """Name of a sample."""
        ends = self._rows[:, 0]
        first = self._layout["keys"] + (int(ends[row - 1]) if row else 0)
        last = self._layout["keys"] + int(ends[row])
        return self._body[first:last].decode("utf-8", "backslashreplace")

    def keys(self) -> list[str]:
        """Names of all samples."""
        return [self.key(row) for row in range(len(self))]

    def member(self, row: int, role: str) -> tuple[int, int] | None:
        """(offset, size) in bytes of a member in the shard, None where the sample has none.

        Args:
            role: "image", "source", "txt" or "json".
        """
        column = 1 + 2 * ROLES.index(role)
        block, size = self._rows[row, column : column + 2].tolist()
        return (block * BLOCK, size) if block else None

    def caption_lengths(self, rows: np.ndarray, tokens: bool) -> np.ndarray:
        """int64 [n], sizes of captions: counted tokens, or bytes of the .txt, or else the .json."""
        if tokens:
            return self._column("tokens")[rows].astype(np.int64)
        txt, json = (1 + 2 * ROLES.index(role) for role in ("txt", "json"))
        found = self._rows[rows]
        return np.where(found[:, txt] > 0, found[:, txt + 1], found[:, json + 1]).astype(np.int64)

    def contents(self) -> IndexContents:
        """Everything, copied out of the file."""
        body = self._body
        return IndexContents(
            self.shard_size,
            self.mtime_ns,
            self._rows.copy(),
            body[self._layout["keys"] : self._layout["probe"]],
            self.problems,
            self._column("tokens").copy() if self.tokenizer else None,
            self._header.tokenizer,
            None if self.checksums is None else self.checksums.copy(),
            self.probe,
        )

    def release(self) -> None:
        """Let go of the file; it is mapped again when it is needed."""
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
                found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = self._parse(found[: _HEADER.size], len(found))
            if header != self._header:
                self._follow(header)
            with memoryview(found) as whole, whole[_HEADER.size :] as body:
                if not self._checked and zlib.crc32(body) != header.body_crc:
                    raise self._damaged()
            self._map, self._checked = found, True
        return self._map

    def _follow(self, header: _Header) -> None:
        """Reopen a file that was written again, with tokens for one, since it was opened."""
        same = ["shard_size", "samples", "keys_size"]
        if not header.flags & self._header.flags & _PROBE:
            same.append("mtime_ns")  # a copied shard's index is written anew, see `_renew`
        if any(getattr(header, name) != getattr(self._header, name) for name in same):
            raise UserError(
                f"the index {self.path} was made again, of another shard, while it was in use; "
                "start again."
            )
        self._header, self._checked = header, False

    @property
    def _layout(self) -> dict[str, int]:
        return _layout(self._header)

    def _parse(self, raw: bytes, size: int) -> _Header:
        """The header of the file, if that has the `size` in bytes that its header says."""
        if raw[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{self.path} is no index of triptych; move it away, then run "
                f"`triptych data index {self.shard.parent}`."
            )
        if len(raw) < _HEADER.size:
            raise self._damaged()
        header = _Header._make(_HEADER.unpack(raw))
        if header.version != VERSION:
            raise UnusableIndex(
                f"the index {self.path} has version {header.version}, this triptych reads "
                f"{VERSION}; run `triptych data index {self.shard.parent}`."
            )
        if header.header_crc != _header_crc(header) or size != _layout(header)["end"]:
            raise self._damaged()
        return header

    def _damaged(self) -> UnusableIndex:
        return UnusableIndex(
            f"the index {self.path} is damaged; run `triptych data index {self.shard.parent}`."
        )


class InMemoryIndex(ShardIndex):
    """An index in memory: no file is written."""

    def __init__(self, shard: Path, contents: IndexContents) -> None:
        self.path = self.shard = shard
        self.renewed = False
        self._data = _encode(contents)
        self._header = self._parse(self._data[: _HEADER.size], len(self._data))

    @property
    def problems(self) -> list[Problem]:
        return [Problem(*each) for each in parse(self._data[self._layout["problems"] :] or b"[]")]

    @property
    def _body(self) -> bytes:
        return self._data


def index_paths(shard: Path) -> Iterator[Path]:
    """Candidate places of a shard's index: beside it, else in the user's cache folder."""
    yield Path(f"{shard}{SUFFIX}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()
    yield cache / "triptych" / "index" / f"{name}{SUFFIX}"


def write_index(shard: Path, contents: IndexContents) -> ShardIndex:
    """Write the index of a shard, all of it or nothing, and open it.

    Raises:
        UserError: neither the shard's folder nor the cache folder can be written to.
    """
    beside, cached = index_paths(shard)
    data = _encode(contents)
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


def _encode(contents: IndexContents) -> bytes:
    problems = json.dumps(contents.problems).encode() if contents.problems else b""
    columns = [contents.tokens, contents.checksums]
    flags = [contents.tokens is not None, contents.checksums is not None, bool(contents.probe)]
    body = b"".join(
        [
            contents.rows.astype("<u4").tobytes(),
            *(column.astype("<u4").tobytes() for column in columns if column is not None),
            contents.keys,
            contents.probe,
            problems,
        ]
    )
    header = _Header(
        MAGIC,
        VERSION,
        0,
        zlib.crc32(body),
        sum(flag for flag, on in zip((_TOKENS, _CHECKSUMS, _PROBE), flags, strict=True) if on),
        contents.tokenizer,
        contents.shard_size,
        contents.mtime_ns,
        len(contents.rows),
        len(contents.keys),
        len(problems),
    )
    return _HEADER.pack(*header._replace(header_crc=_header_crc(header))) + body


def _header_crc(header: _Header) -> int:
    return zlib.crc32(_HEADER.pack(*header._replace(header_crc=0)))


@lru_cache(maxsize=4096)
def _layout(header: _Header) -> dict[str, int]:
    """Start of each section, in bytes; "end" is the size of the file."""
    sizes = {
        "rows": 4 * COLUMNS * header.samples,
        "tokens": 4 * header.samples if header.flags & _TOKENS else 0,
        "checksums": 4 * header.samples if header.flags & _CHECKSUMS else 0,
        "keys": header.keys_size,
        "probe": PROBE_BYTES if header.flags & _PROBE else 0,
        "problems": header.problems_size,
    }
    layout, start = {}, _HEADER.size
    for name, size in sizes.items():
        layout[name] = start
        start += size
    return {**layout, "end": start}
