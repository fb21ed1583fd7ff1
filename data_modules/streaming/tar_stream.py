"""Tar streams of shards that cannot be seeked, validated like `triptych.utils.listing.tar`.

Oversized members are skipped, never held. At the first damage the rest of the shard is given up:
what was lost is unknown, and the next shard is a draw away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from triptych.data_modules.shards.build_index import TOO_LARGE
from triptych.data_modules.sources.base import BadSample, ImageRole
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.streaming.urls import READ_ERRORS
from triptych.utils.listing.names import RECORDED, is_hidden, kind_for, split_at_first_dot
from triptych.utils.listing.tar import (
    DAMAGED,
    DOTTED,
    DUPLICATE,
    RECORD,
    TRUNCATED,
    ZEROS,
    Damage,
    Group,
    group_members,
)
from triptych.utils.listing.tar_headers import (
    BLOCK,
    FOLDER,
    MAX_NAMES_BYTES,
    NAMES,
    OLD_SPARSE,
    Member,
    member_of,
    parse_header,
    payload_size,
    read_names,
    sparse_map,
)

CHUNK = 1 << 20  # bytes read, or skipped, at a time
CONVERSATION = "conversation with images of its own, which only local shards are read for"


@dataclass
class EncodedSample:
    """The members of one sample, as they are in the shard."""

    key: str
    members: dict[str, bytes]
    """kind -> content"""


@dataclass
class MemberLimits:
    """Size limits of members in bytes; a larger one is never held in memory."""

    image: int = 64 << 20
    text: int = 1 << 20

    def for_kind(self, kind: str) -> int:
        return self.text if kind in ("txt", "json") else self.image


def read_samples(file: BinaryIO, limits: MemberLimits) -> Iterator[EncodedSample | BadSample]:
    """Read the samples of a shard, good and bad.

    Members are grouped as in `listing.tar`: a sample next to damage, such as the last one of a
    truncated shard, is never returned.
    """
    contents: dict[int, bytes | None] = {}  # offset -> content; None is too large
    seen: set[bytes] = set()
    for group in group_members(_members(file, contents, limits)):
        members = {k: contents[at] for k, (at, _) in group.members.items() if at in contents}
        last = max((offset for offset, _ in group.members.values()), default=0)
        for offset in [offset for offset in contents if offset <= last]:
            del contents[offset]  # the rest belongs to the next group
        fault = _fault(group, members, seen)
        seen.add(group.key)
        for each in group.split_dotted() if fault == DOTTED else [group]:
            key = each.key.decode("utf-8", "replace")
            yield BadSample(key, fault) if fault else EncodedSample(key, members)


def _fault(group: Group, members: dict[str, bytes | None], seen: set[bytes]) -> str:
    if not group.fault and group.key in seen:
        return DUPLICATE
    if None in members.values() and not group.fault:
        return TOO_LARGE
    conversation = kind_for("image", members) is None and group.is_conversation
    return group.reason or (CONVERSATION if conversation else "")


def _members(
    file: BinaryIO, contents: dict[int, bytes | None], limits: MemberLimits
) -> Iterator[Member | Damage]:
    """Members in file order; their contents go to `contents` by their offset."""
    position = 0
    fields: dict[str, bytes] = {}  # of the next member, set by headers of names
    try:
        while True:
            block = _read(file, BLOCK)
            header = parse_header(block)
            if header is None:
                if reason := _reason_at_end(block, file):
                    yield Damage(reason)
                return
            position += BLOCK
            size = payload_size(header, fields)
            padding = -size % BLOCK
            if header.type in NAMES:
                if size > MAX_NAMES_BYTES:
                    yield Damage(DAMAGED)
                    return
                more = read_names(header.type, _read(file, size))
                if more is None:
                    yield Damage(DAMAGED)
                    return
                fields |= more
                whole = _skip(file, padding)
            else:
                if header.type == OLD_SPARSE:
                    position += sparse_map(block, lambda place: _read(file, BLOCK), position)
                member = member_of(header, fields, position, size)
                kind = split_at_first_dot(member.name)[1]
                recorded = kind in RECORDED and not is_hidden(member.name)
                held = recorded and not member.fault and size <= limits.for_kind(kind)
                content = _read(file, size) if held else None
                whole = len(content) == size if held else _skip(file, size)
                whole = whole and _skip(file, padding)
                if recorded:
                    contents[position] = content
                if header.type != FOLDER:
                    yield member
                fields = {}
            position += size + padding
            if not whole:
                yield Damage(TRUNCATED)
                return
    except READ_ERRORS:
        yield Damage(TRUNCATED)


def _reason_at_end(block: bytes, file: BinaryIO) -> str:
    """Damage at a block that is not a header; "" at a regular end, as in `listing.tar`.

    An archive ends with zeros up to the end of a record. More zeros, or bytes behind them, are a
    hole that a download left.
    """
    if any(block):
        return DAMAGED if len(block) == BLOCK else TRUNCATED
    longest = BLOCK + RECORD
    rest = _read(file, longest)
    if any(rest):
        return ZEROS
    return "" if len(block) == BLOCK and len(rest) < longest else TRUNCATED


def _read(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer at the end; a socket returns them in chunks."""
    chunks, missing = [], size
    while missing:
        chunk = file.read(min(missing, CHUNK))
        if not chunk:
            break
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def _skip(file: BinaryIO, size: int) -> bool:
    """Skip `size` bytes; return whether the file had them."""
    while size:
        chunk = file.read(min(size, CHUNK))
        if not chunk:
            return False
        size -= len(chunk)
    return True


class InMemorySamples(ShardFolder):
    """Samples of shards, held in memory."""

    def __init__(self, name: str, samples: list[EncodedSample], limits: MemberLimits) -> None:
        super().__init__(name, max_image_bytes=limits.image, max_text_bytes=limits.text)
        self.samples = samples

    def open(self) -> InMemorySamples:
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, number: int) -> str:
        return self.samples[number].key

    def has_image(self, number: int, role: ImageRole) -> bool:
        return self._read(number, role, 0) is not None

    def _read(self, number: int, role: str, max_bytes: int) -> bytes | None:
        members = self.samples[number].members
        return members.get(kind_for(role, members))
