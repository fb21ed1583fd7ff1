"""File format of the index of a shard: header, sections and their checksums.

All numbers are little-endian:

    header    72 bytes, see `HEADER`
    rows      uint32 [samples, 9]: where the key ends in the keys, then for each role in KINDS
              (image, source, txt, json) the first block of 512 bytes and the size in bytes;
              block 0 stands for a missing member
    tokens    uint32 [samples], tokens of each caption; only if they were counted
    checksums uint32 [samples], CRC-32 over all members of a sample; only if they were requested
    keys      the keys, one after the other, as the archive has them
    probe     16 bytes, see identity.py; missing in the indexes of older versions
    problems  JSON, [[reason, samples, [some of their keys]], ...]; empty without problems
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from triptych.data_modules.shards.identity import PROBE_BYTES
from triptych.utils.listing.names import KINDS

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


@dataclass
class IndexContents:
    """Content of an index file."""

    shard_size: int
    """Size of the shard in bytes when it was read."""
    mtime_ns: int
    """Time of the last change of the shard, in ns, when it was read."""
    rows: np.ndarray
    keys: bytes
    _: KW_ONLY
    problems: list[Problem] = field(default_factory=list)
    tokens: np.ndarray | None = None
    tokenizer: bytes = b"\0" * 8
    """Digest of the tokenizer that counted `tokens`, see index_columns.py."""
    checksums: np.ndarray | None = None
    probe: bytes = b""
    """Probe of the shard, see identity.py."""


class Header(NamedTuple):
    """Header of an index file, in the order of its bytes."""

    magic: bytes
    version: int
    header_crc: int  # see `header_crc_of`
    body_crc: int  # of all bytes after the header
    flags: int
    tokenizer: bytes
    shard_size: int
    mtime_ns: int
    samples: int
    keys_size: int
    problems_size: int


HEADER = struct.Struct("<8sIIII8sqqQQQ")
HAS_TOKENS, HAS_CHECKSUMS, HAS_PROBE = 1, 2, 4  # flags


def encode(contents: IndexContents) -> bytes:
    """Bytes of an index file."""
    problems = json.dumps(contents.problems).encode() if contents.problems else b""
    columns = [contents.tokens, contents.checksums]
    flags = HAS_TOKENS * (contents.tokens is not None)
    flags |= HAS_CHECKSUMS * (contents.checksums is not None)
    flags |= HAS_PROBE * bool(contents.probe)
    body = b"".join(
        [
            contents.rows.astype("<u4").tobytes(),
            *(column.astype("<u4").tobytes() for column in columns if column is not None),
            contents.keys,
            contents.probe,
            problems,
        ]
    )
    header = Header(
        magic=MAGIC,
        version=VERSION,
        header_crc=0,
        body_crc=zlib.crc32(body),
        flags=flags,
        tokenizer=contents.tokenizer,
        shard_size=contents.shard_size,
        mtime_ns=contents.mtime_ns,
        samples=len(contents.rows),
        keys_size=len(contents.keys),
        problems_size=len(problems),
    )
    return HEADER.pack(*header._replace(header_crc=header_crc_of(header))) + body


def header_crc_of(header: Header) -> int:
    """CRC-32 of the header, with the field of the CRC as zero."""
    return zlib.crc32(HEADER.pack(*header._replace(header_crc=0)))


@lru_cache(maxsize=4096)
def layout_of(header: Header) -> dict[str, int]:
    """Start of each section, in bytes; "end" is the size of the file."""
    sizes = {
        "rows": 4 * COLUMNS * header.samples,
        "tokens": 4 * header.samples if header.flags & HAS_TOKENS else 0,
        "checksums": 4 * header.samples if header.flags & HAS_CHECKSUMS else 0,
        "keys": header.keys_size,
        "probe": PROBE_BYTES if header.flags & HAS_PROBE else 0,
        "problems": header.problems_size,
    }
    layout, start = {}, HEADER.size
    for name, size in sizes.items():
        layout[name] = start
        start += size
    return {**layout, "end": start}
