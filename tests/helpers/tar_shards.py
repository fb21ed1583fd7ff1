"""Tar shards whose samples hold their own number in every member.

Use it where a test asserts which members are paired.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path


def sample(number: int, key: str | None = None, repeat: int = 100) -> list[tuple[str, bytes]]:
    """Members (name, content) of one sample; its image is no image, but names the sample."""
    key = f"{number:08d}" if key is None else key
    stamp = f"{number:08d}"
    return [
        (f"{key}.jpg", stamp.encode() * repeat),
        (f"{key}.json", json.dumps({"number": [stamp] * 5}).encode()),
        (f"{key}.txt", " ".join([stamp] * 5).encode()),
    ]


def write(path: Path, members, **options) -> Path:
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def number_of(content: bytes) -> str:
    """The number that a member names, though one byte of it may be wrong."""
    text = content.replace(b" ", b"")
    stamps = Counter(text[n : n + 8] for n in range(0, len(text), 8))
    return stamps.most_common(1)[0][0].decode()


def shards_of(folder, number, samples=2):
    """Small shards with consecutive sample numbers."""
    return [
        write(
            folder / f"{n:04d}.tar",
            [m for i in range(samples) for m in sample(n * samples + i, repeat=2)],
        )
        for n in range(number)
    ]
