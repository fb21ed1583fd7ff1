"""Shards that cannot be seeked: samples as they come by, with the distrust of tar.py.

What is too large is read past, never held. At the first damage the rest of the shard is given up:
there is no telling what was lost, and the next shard is a draw away.
"""

from __future__ import annotations

import gzip
import http.client
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlparse

from triptych.contracts import UserError
from triptych.documents import open_regular

from .indexing import DUPLICATE, NO_CAPTION, NO_PICTURE, TOO_LARGE
from .shards import ShardFolder
from .source import BadSample, ImageRole
from .tar import (
    BLOCK,
    DAMAGED,
    KINDS,
    LONGEST_NAMES,
    NAMES,
    RECORD,
    RECORDED,
    REGULAR,
    TRUNCATED,
    Damage,
    Group,
    Member,
    groups,
    parse_header,
    payload_size,
    read_names,
    split_name,
)

TIMEOUT = 60.0  # seconds without a byte
PASS = 1 << 20  # bytes that are read past at a time
# What goes wrong with a file that is far away, or compressed.
BROKEN = (OSError, EOFError, UserError, zlib.error, http.client.HTTPException)
# Schemes, and the package that opens them where it is not the standard library.
SCHEMES = {"": None, "file": None, "http": None, "https": None}
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}


@dataclass
class Encoded:
    """The members of one sample, as they are in the shard."""

    key: str
    members: dict[str, bytes]
    """kind -> content"""


@dataclass
class Caps:
    """Larger members are never held in memory; in bytes."""

    picture: int = 64 << 20
    text: int = 1 << 20

    def of(self, kind: str) -> int:
        return self.text if kind in ("txt", "json") else self.picture


def check_url(url: str) -> None:
    """Refuse what `open_url` cannot open.

    Raises:
        UserError: the scheme is unknown (`pipe:` for one), or its package is not installed.
    """
    scheme = urlparse(url).scheme
    if scheme in SCHEMES:
        return
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, *PACKAGES) if name)
        raise UserError(f"the shard {url} cannot be streamed; give a file, or one of {known}.")
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise UserError(
            f"the shard {url} needs the package {package}; run `pip install {package}`."
        ) from error


def open_url(url: str) -> BinaryIO:
    """A shard, unpacked if it is gzipped.

    webdataset opens http and hf through the program curl, with a user's token among its arguments
    for all to see, knows no s3, and in its secure mode opens no local file. So this is our own.

    Raises:
        OSError, UserError, http.client.HTTPException, ...: see BROKEN.
    """
    parsed = urlparse(url)
    if parsed.scheme in ("http", "https"):
        file = urllib.request.urlopen(url, timeout=TIMEOUT)
    elif parsed.scheme in PACKAGES:
        import fsspec

        file = fsspec.open(url, "rb").open()
    else:
        file = open_regular(urllib.request.url2pathname(parsed.path) if parsed.scheme else url)
    packed = parsed.path.endswith((".gz", ".tgz"))
    return gzip.GzipFile(fileobj=file) if packed else file


def read_samples(file: BinaryIO, caps: Caps) -> Iterator[Encoded | BadSample]:
    """The samples of a shard, and what is wrong with the others.

    Members are grouped as in tar.py: a sample next to damage, such as the last one of a shard that
    is cut off, never comes out.
    """
    contents: dict[int, bytes | None] = {}  # by place; None is too large
    seen: set[bytes] = set()
    for group in groups(_members(file, contents, caps)):
        members = {kind: contents[place] for kind, (place, _) in group.members.items()}
        last = max((place for place, _ in group.members.values()), default=0)
        for place in [place for place in contents if place <= last]:
            del contents[place]  # what is left is of the next group
        key = group.key.decode("utf-8", "replace")
        fault = group.fault or _fault(group, members, seen)
        seen.add(group.key)
        yield BadSample(key, fault) if fault else Encoded(key, members)


def _fault(group: Group, members: dict[str, bytes | None], seen: set[bytes]) -> str:
    if group.key in seen:
        return DUPLICATE
    if None in members.values():
        return TOO_LARGE
    if not any(kind in members for kind in KINDS["picture"]):
        return NO_PICTURE
    return "" if "txt" in members or "json" in members else NO_CAPTION


def _members(
    file: BinaryIO, contents: dict[int, bytes | None], caps: Caps
) -> Iterator[Member | Damage]:
    """Members in file order; what they hold goes to `contents` by their place."""
    position = 0
    said: dict[str, bytes] = {}
    try:
        while True:
            block = _read(file, BLOCK)
            header = parse_header(block)
            if header is None:
                if len(block) < BLOCK or not any(block):
                    if not _is_end(block, file):
                        yield Damage(TRUNCATED)
                else:
                    yield Damage(DAMAGED)
                return
            position += BLOCK
            size = payload_size(header, said)
            padding = -size % BLOCK
            if header.type in NAMES:
                if size > LONGEST_NAMES:
                    yield Damage(DAMAGED)
                    return
                more = read_names(header.type, _read(file, size))
                if more is None:
                    yield Damage(DAMAGED)
                    return
                said |= more
                whole = _pass(file, padding)
            else:
                name = said.get("path", header.name)
                kind = split_name(name)[1]
                regular = header.type in REGULAR and "GNU.sparse.major" not in said
                held = regular and kind in RECORDED and size <= caps.of(kind)
                content = _read(file, size) if held else None
                whole = len(content) == size if held else _pass(file, size)
                whole = whole and _pass(file, padding)
                if regular:
                    if kind in RECORDED:
                        contents[position] = content
                    yield Member(name, position, size, "path" in said)
                said = {}
            position += size + padding
            if not whole:
                yield Damage(TRUNCATED)
                return
    except BROKEN:
        yield Damage(TRUNCATED)


def _is_end(block: bytes, file: BinaryIO) -> bool:
    """Whether an archive ends here as it should, by the rule of tar.py: zeros up to a record's end.

    More of them, or something behind them, are a hole that a download left.
    """
    most = BLOCK + RECORD
    rest = _read(file, most)
    return len(block) == BLOCK and not any(rest) and len(rest) < most


def _read(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer at the end; sockets give them in pieces."""
    pieces, missing = [], size
    while missing:
        piece = file.read(min(missing, PASS))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _pass(file: BinaryIO, size: int) -> bool:
    """Read past `size` bytes; whether they were there."""
    while size:
        piece = file.read(min(size, PASS))
        if not piece:
            return False
        size -= len(piece)
    return True


class StreamedSamples(ShardFolder):
    """Samples in memory, read like those of a folder of shards."""

    def __init__(self, name: str, samples: list[Encoded], caps: Caps) -> None:
        super().__init__(name, max_picture_bytes=caps.picture, max_text_bytes=caps.text)
        self.samples = samples

    def open(self) -> StreamedSamples:
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, number: int) -> str:
        return self.samples[number].key

    def has(self, number: int, role: ImageRole) -> bool:
        return self._read(number, role, 0) is not None

    def _read(self, number: int, role: str, most: int) -> bytes | None:
        members = self.samples[number].members
        return next((members[kind] for kind in KINDS[role] if kind in members), None)
