"""Identity of a shard: size and modification time, or a probe of its content.

The probe is compared if only the time differs: a copy on another disk is the same shard.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from triptych.utils.documents import open_regular

BLOCK = 64 * 1024  # bytes
BLOCKS = 16  # of a large file, with the first and the last; smaller files are read whole
PROBE_BYTES = 16


def compute_probe(path: Path) -> bytes:
    """Hash of the size of a file and of evenly spaced blocks of it, PROBE_BYTES long.

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
    spaced = [last * n // (BLOCKS - 1) for n in range(BLOCKS)]
    offsets = range(0, size, BLOCK) if whole else spaced
    with open_regular(path) as file:
        for offset in offsets:
            digest.update(os.pread(file.fileno(), BLOCK, offset))
    return digest.digest()


def file_stamp(path: Path) -> dict[str, Any]:
    """Identity of a file at this moment: "size", "mtime_ns", and "probe" in hexadecimal."""
    status = path.stat()
    probe = compute_probe(path).hex()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "probe": probe}


def matches_stamp(path: Path, stamp: dict[str, Any]) -> bool:
    """Whether a file still has the identity of `stamp`; it is read only if its time differs."""
    status = path.stat()
    if status.st_size != stamp.get("size"):
        return False
    if status.st_mtime_ns == stamp.get("mtime_ns"):
        return True
    return stamp.get("probe") == compute_probe(path).hex()
