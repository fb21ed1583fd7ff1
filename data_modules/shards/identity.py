"""Identity of a shard: size and time stamp; where only the time differs, a probe of its content.

A copy on another disk has another time, and is the same shard.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from triptych.utils.documents import open_regular

BLOCK = 64 * 1024  # bytes
BLOCKS = 16  # read of a large file, the first and the last among them; smaller ones are read whole
PROBE_BYTES = 16


def compute_probe(path: Path) -> bytes:
    """PROBE_BYTES that stand for the size of a file and for blocks of it, evenly spread.

    Raises:
        UserError: it is not a regular file, or cannot be opened.
        OSError: it cannot be read.
    """
    status = path.stat()
    return _probe(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _probe(path: Path, size: int, mtime_ns: int) -> bytes:
    digest = hashlib.blake2b(str(size).encode(), digest_size=PROBE_BYTES)
    last = max(0, size - BLOCK)
    whole = size <= BLOCK * BLOCKS
    places = range(0, size, BLOCK) if whole else [last * n // (BLOCKS - 1) for n in range(BLOCKS)]
    with open_regular(path) as file:
        for place in places:
            digest.update(os.pread(file.fileno(), BLOCK, place))
    return digest.digest()


def file_stamp(path: Path) -> dict[str, Any]:
    """Identity of a file as it is now: "size" and "mtime_ns", and "probe" in hexadecimal."""
    status = path.stat()
    probe = compute_probe(path).hex()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "probe": probe}


def matches_stamp(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file is the one that a stamp was taken of; read only where its time differs."""
    status = path.stat()
    if status.st_size != known.get("size"):
        return False
    if status.st_mtime_ns == known.get("mtime_ns"):
        return True
    return known.get("probe") == compute_probe(path).hex()
