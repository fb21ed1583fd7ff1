"""Tar archives read with distrust: members, where they lie, and where the archive is damaged.

Python's tarfile ends at the first damaged header, and hands out members that are cut off. This
scanner verifies the checksum of every header, goes on at the next good one after damage, and says
where damage was, so that nothing on its two sides is ever joined into one sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triptych.contracts import UserError
from triptych.documents import open_regular

BLOCK = 512  # bytes; headers and payloads begin at its multiples
RECORD = 20 * BLOCK  # what tar rounds up the size of an archive to
CHUNK = 256 * 1024  # bytes looked through at a time for the next header
LONGEST_NAMES = 1 << 20  # bytes of a header of names; more is taken for damage

PICTURES = ("jpg", "jpeg", "png", "webp")
KINDS = {
    "picture": (*(f"target.{kind}" for kind in PICTURES), *PICTURES),
    "source": tuple(f"source.{kind}" for kind in PICTURES),
    "txt": ("txt",),
    "json": ("json",),
}
"""What a sample is made of: role -> kinds of members, the preferred first. All else is ignored."""
RECORDED = frozenset(kind for kinds in KINDS.values() for kind in kinds)

DAMAGED = "damaged header"
TRUNCATED = "truncated"
REPEATED = "two members of one kind"


class Member(NamedTuple):
    """A regular file in the archive."""

    name: bytes
    offset: int
    """Of the payload, in bytes from the start of the archive."""
    size: int
    """Of the payload, in bytes."""
    renamed: bool
    """Whether the name came from an extra header of its own: pax, or GNU's long names."""


class Damage(NamedTuple):
    """Between the member before and the one after, something is lost, or may be."""

    reason: str
    """DAMAGED, or TRUNCATED at the end of the file."""


@dataclass
class Group:
    """Members of one key that stand together: a sample, if it is complete."""

    key: bytes
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """kind -> (offset, size) in bytes, of the kinds that are recorded"""
    fault: str = ""
    """Why the group must not be used, whatever its members are."""
    renamed: bool = False
    """As in its first `Member`."""


def scan(path: Path) -> Iterator[Member | Damage]:
    """The members of an archive in file order, and the damage between them.

    A member that runs past the end of the file comes out too, followed by `Damage`, so that the
    sample it belongs to is known. Reads headers only, unless it must look for the next one.

    Raises:
        UserError: the file cannot be read, or is no tar archive at all, or is gzipped.
    """
    with open_regular(path) as opened:
        file = opened.fileno()
        try:
            end = os.fstat(file).st_size
            _check_start(path, file, end)
            yield from _walk(file, end)
        except OSError as error:
            raise UserError(f"the shard {path} cannot be read: {error.strerror}.") from error


def groups(events: Iterable[Member | Damage]) -> Iterator[Group]:
    """Members of one key that stand together, as webdataset writes them.

    The groups on both sides of damage have a fault: each may have lost a member. A key that comes
    again later makes another group.
    """
    group: Group | None = None
    fault = ""  # of the next group: damage right before it
    for event in events:
        if isinstance(event, Damage):
            if group is not None:
                group.fault = event.reason
                yield group
            group, fault = None, event.reason
            continue
        key, kind = split_name(event.name)
        if not key:
            continue
        if group is not None and group.key != key:
            if group.fault == DAMAGED and event.renamed and not group.renamed:
                # The first header after damage may have lost its long name, and shows a part of
                # it. Then it belongs to the sample that follows, which is not whole.
                group.key, group.renamed = key, True
            else:
                yield group
                group = None
        if group is None:
            group, fault = Group(key, fault=fault, renamed=event.renamed), ""
        if kind in group.members:
            group.fault = group.fault or REPEATED
        elif kind in RECORDED:
            group.members[kind] = (event.offset, event.size)
    if group is not None:
        yield group


def split_name(name: bytes) -> tuple[bytes, str]:
    """b"folder/KEY.source.jpg" -> (b"folder/KEY", "source.jpg"), as webdataset does.

    The key is empty where there is none: a name without a dot, or that begins with one.
    """
    folder, slash, file = name.rpartition(b"/")
    stem, dot, kind = file.partition(b".")
    if not (stem and dot):
        return b"", ""
    return folder + slash + stem, kind.decode("ascii", "replace").lower()


class _Header(NamedTuple):
    name: bytes
    size: int
    type: bytes


REGULAR = frozenset((b"0", b"\0", b"7"))
NAMES = frozenset((b"L", b"K", b"x", b"g"))  # their payload is about the next member, or all
EMPTY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))  # links, devices, folders


def _check_start(path: Path, file: int, end: int) -> None:
    """Refuse what is no tar archive by name; a damaged one has a good header somewhere."""
    start = os.pread(file, BLOCK, 0)
    if not start:
        raise UserError(f"the shard {path} is empty; download it again, or remove it.")
    if start.startswith(b"\x1f\x8b"):
        raise UserError(
            f"the shard {path} is gzipped, and samples in it cannot be found by their place; "
            "unpack it with gunzip, or stream it."
        )
    if any(start) and _next_header(file, 0, end) is None:
        raise UserError(
            f"the shard {path} is damaged: there is no tar header in it; download it again, or "
            "remove it."
        )


def _walk(file: int, end: int) -> Iterator[Member | Damage]:
    position = 0
    said: dict[str, bytes] = {}  # about the next member, by headers of names
    while position < end:
        block = os.pread(file, BLOCK, position)
        header = parse_header(block)
        payload = position + BLOCK
        if header is None and _only_zeros(file, position, end):
            return
        if header is not None:
            size = payload_size(header, said)
            position = payload + -(-size // BLOCK) * BLOCK
            good = payload + size <= end
            if header.type in NAMES:
                good = good and size <= LONGEST_NAMES
                more = read_names(header.type, os.pread(file, size, payload)) if good else None
                good = more is not None
                said |= more or {}
            else:
                if header.type in REGULAR and "GNU.sparse.major" not in said:
                    yield Member(said.get("path", header.name), payload, size, "path" in said)
                said = {}
            if good:
                continue
        following = _next_header(file, payload, end)
        if following is None:
            noise = header is None and len(block) == BLOCK and any(block)
            yield Damage(DAMAGED if noise else TRUNCATED)
            return
        # Zeros alone may be a hole that a download left, or the end of an archive that another
        # one was appended to: not to be told apart.
        yield Damage(DAMAGED)
        position, said = following, {}
    yield Damage(TRUNCATED)  # a whole archive ends with zeros


def parse_header(block: bytes) -> _Header | None:
    """A header, None where its checksum is wrong or it is no header."""
    if block[257:262] != b"ustar" or len(block) < BLOCK:
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    if size is None or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[262:263] == b"\0" else b""  # GNU has no prefix
    return _Header(prefix + b"/" + name if prefix else name, size, block[156:157])


def _number(digits: bytes) -> int | None:
    """A field of a header: octal digits, or GNU's binary for what does not fit."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    digits = digits.strip(b" \0") or b"0"
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def payload_size(header: _Header, said: dict[str, bytes]) -> int:
    """Bytes of payload behind a header."""
    if header.type in EMPTY:
        return 0
    larger = said.get("size", b"")  # than a header can say
    return int(larger) if header.type not in NAMES and larger.isdigit() else header.size


def read_names(kind: bytes, payload: bytes) -> dict[str, bytes] | None:
    """What a header of names says about the next member; None where it makes no sense."""
    if kind == b"L":
        return {"path": payload.rstrip(b"\0")}
    found: dict[str, bytes] = {}
    if kind != b"x":
        return found
    start, end = 0, len(payload.rstrip(b"\0"))
    while start < end:  # records are "LENGTH KEYWORD=VALUE\n"
        space = payload.find(b" ", start, start + 8)
        length = payload[start : max(space, start)]
        stop = start + int(length) if length.isdigit() else start
        keyword, equals, value = payload[space + 1 : stop - 1].partition(b"=")
        if not equals or payload[stop - 1 : stop] != b"\n":
            return None
        found[keyword.decode("utf-8", "replace")] = value
        start = stop
    return found


def _only_zeros(file: int, start: int, end: int) -> bool:
    """Whether this is how an archive ends: two blocks of zeros, and more up to a whole record.

    More zeros than that are what a download left that had set the size of its file beforehand.
    """
    return end - start < 2 * BLOCK + RECORD and not any(os.pread(file, end - start, start))


def _next_header(file: int, start: int, end: int) -> int | None:
    """Where the first good header at or after `start` is, in bytes."""
    for position in range(start, end, CHUNK):
        chunk = os.pread(file, CHUNK, position)
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
        for number in np.flatnonzero((blocks[:, 257:262] == list(b"ustar")).all(1)):
            if parse_header(blocks[number].tobytes()) is not None:
                return position + int(number) * BLOCK
    return None
