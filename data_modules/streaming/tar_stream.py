"""Tar streams of shards that cannot be seeked, validated like tar.py.

Oversized members are skipped, never held. At the first damage the rest of the shard is given up:
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

from triptych.data_modules.shards.build_index import TOO_LARGE
from triptych.data_modules.sources.base import BadSample, ImageRole
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.names import RECORDED, is_hidden, kind_for, split_at_first_dot
from triptych.utils.listing.shards import GZIPPED
from triptych.utils.listing.tar import (
    BLOCK,
    DAMAGED,
    DOTTED,
    DUPLICATE,
    FOLDER,
    MAX_NAMES_BYTES,
    NAMES,
    OLD_SPARSE,
    RECORD,
    TRUNCATED,
    ZEROS,
    Damage,
    Group,
    Member,
    groups,
    member_of,
    parse_header,
    payload_size,
    read_names,
    sparse_map,
)

TIMEOUT = 60.0  # seconds without a byte
PASS = 1 << 20  # bytes that are read past at a time
# Errors of a file that is remote, or compressed.
BROKEN = (OSError, EOFError, UserError, zlib.error, http.client.HTTPException)
# Schemes, and the package that opens them where it is not the standard library.
SCHEMES = {"": None, "file": None, "http": None, "https": None}
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}


@dataclass
class EncodedSample:
    """The members of one sample, as they are in the shard."""

    key: str
    members: dict[str, bytes]
    """kind -> content"""


@dataclass
class MemberLimits:
    """Larger members are never held in memory; in bytes."""

    image: int = 64 << 20
    text: int = 1 << 20

    def of(self, kind: str) -> int:
        return self.text if kind in ("txt", "json") else self.image


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
    return gzip.GzipFile(fileobj=file) if parsed.path.lower().endswith(GZIPPED) else file


def read_samples(file: BinaryIO, caps: MemberLimits) -> Iterator[EncodedSample | BadSample]:
    """The samples of a shard, and the problems of the others.

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
        fault = _fault(group, members, seen)
        seen.add(group.key)
        for each in group.whole_names() if fault == DOTTED else [group]:
            key = each.key.decode("utf-8", "replace")
            yield BadSample(key, fault) if fault else EncodedSample(key, members)


def _fault(group: Group, members: dict[str, bytes | None], seen: set[bytes]) -> str:
    if not group.fault and group.key in seen:
        return DUPLICATE
    return group.fault or (TOO_LARGE if None in members.values() else group.reason)


def _members(
    file: BinaryIO, contents: dict[int, bytes | None], caps: MemberLimits
) -> Iterator[Member | Damage]:
    """Members in file order; their contents go to `contents` by their place."""
    position = 0
    said: dict[str, bytes] = {}
    try:
        while True:
            block = _read(file, BLOCK)
            header = parse_header(block)
            if header is None:
                if reason := _reason_at_end(block, file):
                    yield Damage(reason)
                return
            position += BLOCK
            size = payload_size(header, said)
            padding = -size % BLOCK
            if header.type in NAMES:
                if size > MAX_NAMES_BYTES:
                    yield Damage(DAMAGED)
                    return
                more = read_names(header.type, _read(file, size))
                if more is None:
                    yield Damage(DAMAGED)
                    return
                said |= more
                whole = _pass(file, padding)
            else:
                if header.type == OLD_SPARSE:
                    position += sparse_map(block, lambda place: _read(file, BLOCK), position)
                member = member_of(header, said, position, size)
                kind = split_at_first_dot(member.name)[1]
                recorded = kind in RECORDED and not is_hidden(member.name)
                held = recorded and not member.fault and size <= caps.of(kind)
                content = _read(file, size) if held else None
                whole = len(content) == size if held else _pass(file, size)
                whole = whole and _pass(file, padding)
                if recorded:
                    contents[position] = content
                if header.type != FOLDER:
                    yield member
                said = {}
            position += size + padding
            if not whole:
                yield Damage(TRUNCATED)
                return
    except BROKEN:
        yield Damage(TRUNCATED)


def _reason_at_end(block: bytes, file: BinaryIO) -> str:
    """Damage where no header is; "" where an archive ends as it should, by the rule of tar.py.

    That is with zeros up to a record's end. More of them, or something behind them, are a hole that
    a download left.
    """
    if any(block):
        return DAMAGED if len(block) == BLOCK else TRUNCATED
    most = BLOCK + RECORD
    rest = _read(file, most)
    if any(rest):
        return ZEROS
    return "" if len(block) == BLOCK and len(rest) < most else TRUNCATED


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


class InMemorySamples(ShardFolder):
    """Samples in memory, read like those of a folder of shards."""

    def __init__(self, name: str, samples: list[EncodedSample], caps: MemberLimits) -> None:
        super().__init__(name, max_image_bytes=caps.image, max_text_bytes=caps.text)
        self.samples = samples

    def open(self) -> InMemorySamples:
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, number: int) -> str:
        return self.samples[number].key

    def has_image(self, number: int, role: ImageRole) -> bool:
        return self._read(number, role, 0) is not None

    def _read(self, number: int, role: str, most: int) -> bytes | None:
        members = self.samples[number].members
        return members.get(kind_for(role, members))
