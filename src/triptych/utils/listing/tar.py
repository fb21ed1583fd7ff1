"""Scanner of untrusted tar archives: members, their offsets, and damage of the archive.

Python's tarfile stops at the first damaged header, and returns truncated members. This scanner
verifies the checksum of every header, resumes at the next valid one after damage, and reports the
damage, so that members before and after it are never joined into one sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.names import (
    FIRST_IMAGE,
    RECORDED,
    is_hidden,
    kind_for,
    split_at_first_dot,
    split_at_kind,
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

RECORD = 20 * BLOCK  # what tar rounds up the size of an archive to
CHUNK = 256 * 1024  # bytes searched at a time for the next header

DAMAGED = "damaged header"
TRUNCATED = "truncated"
ZEROS = "zeros in the middle of the archive, or bytes behind its end"
REPEATED = "two members of one kind"
DUPLICATE = "duplicate key"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
DOTTED = (
    "dot inside of a name: names in a shard end at their first dot; `triptych data pack` writes "
    "shards whose names have none"
)


class Damage(NamedTuple):
    """Damage between two members, in which members may be lost."""

    reason: str
    """DAMAGED, ZEROS, or TRUNCATED at the end of the file."""


@dataclass
class Group:
    """Consecutive members of one key: a sample, if it is complete."""

    key: bytes
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """kind -> (offset, size) in bytes, of the kinds of RECORDED and FIRST_IMAGE"""
    fault: str = ""
    """Reason why the group is unusable, whatever its members."""
    renamed: bool = False
    """`Member.renamed` of its first member."""
    dotted: list[Member] = field(default_factory=list)
    """Members of other kinds, which would be of RECORDED if names ended at their last dot."""

    @property
    def reason(self) -> str:
        """Reason why it is not a sample of an image and a caption; "" if it is one."""
        if self.fault:
            return self.fault
        if kind_for("image", self.members) is None and not self.is_conversation:
            return DOTTED if self._has_dotted_image() else NO_IMAGE
        return "" if "txt" in self.members or "json" in self.members else NO_CAPTION

    @property
    def is_conversation(self) -> bool:
        """Whether it has JSON and numbered images, "photo v1.0.jpg" and its caption being none."""
        return "json" in self.members and not self.members.keys().isdisjoint(FIRST_IMAGE)

    def _has_dotted_image(self) -> bool:
        kinds = {split_at_kind(member.name)[1] for member in self.dotted}
        return kind_for("image", kinds) is not None

    def split_dotted(self) -> list[Group]:
        """Groups of its `dotted` members, if names end where their kind begins."""
        groups: dict[bytes, Group] = {}
        for member in self.dotted:
            key, kind = split_at_kind(member.name)
            group = groups.setdefault(key, Group(key, fault=self.fault, renamed=member.renamed))
            group.add(kind, member)
        return list(groups.values())

    def add(self, kind: str, member: Member) -> None:
        """Add a member of a kind of RECORDED or FIRST_IMAGE."""
        if kind in self.members:
            self.fault = self.fault or REPEATED
        self.fault = self.fault or member.fault
        self.members.setdefault(kind, (member.offset, member.size))


def scan(path: Path) -> Iterator[Member | Damage]:
    """Scan the members of an archive in file order, and the damage between them.

    A member that extends past the end of the file is yielded too, followed by `Damage`, so that its
    sample is known. Only headers are read, except to search for the next one after damage.

    Raises:
        UserError: the file cannot be read, is not a tar archive, or is gzipped.
    """
    with open_regular(path) as opened:
        file = opened.fileno()
        try:
            end = os.fstat(file).st_size
            _check_start(path, file, end)
            yield from _walk(file, end)
        except OSError as error:
            raise UserError(f"the shard {path} cannot be read: {error.strerror}.") from error


def members_of_key(path: Path, key: str, start: int) -> dict[str, tuple[int, int]]:
    """(offset, size) in bytes of the consecutive members of a key, by kind, from a payload on.

    Args:
        start: offset of the payload of one of the members; those before it are not found.

    Raises:
        OSError: the file cannot be read.
    """
    found: dict[str, tuple[int, int]] = {}
    with open_regular(path) as opened:
        file = opened.fileno()
        for event in _walk(file, os.fstat(file).st_size, start - BLOCK):
            if isinstance(event, Damage):
                break
            stem, kind = split_at_first_dot(event.name)
            # a long name is in a header of its own, before that of the first member
            if event.offset != start and stem.decode("utf-8", "backslashreplace") != key:
                break
            if not event.fault:
                found.setdefault(kind, (event.offset, event.size))
    return found


def group_members(events: Iterable[Member | Damage]) -> Iterator[Group]:
    """Group consecutive members of one key, as webdataset writes them.

    The groups before and after damage have a fault: each may have lost a member. A key that repeats
    later makes another group.
    """
    group: Group | None = None
    fault = ""  # of the next group: damage just before it
    for event in events:
        if isinstance(event, Damage):
            if group is not None:
                group.fault = event.reason
                yield group
            group, fault = None, event.reason
            continue
        key, kind = split_at_first_dot(event.name)
        if not key or is_hidden(event.name):
            continue
        if group is not None and group.key != key:
            if group.fault in (DAMAGED, ZEROS) and event.renamed and not group.renamed:
                # The first header after damage may have lost its long name, and has a truncated
                # one. Then it belongs to the next sample, which is incomplete.
                group.key, group.renamed = key, True
            else:
                yield group
                group = None
        if group is None:
            group, fault = Group(key, fault=fault, renamed=event.renamed), ""
        if kind in RECORDED or kind in FIRST_IMAGE:
            group.add(kind, event)
        if kind not in RECORDED and split_at_kind(event.name)[0]:
            group.dotted.append(event)
    if group is not None:
        yield group


def split_dotted(groups: Iterable[Group]) -> Iterator[Group]:
    """The same groups, but with those whose names have dots split by `Group.split_dotted`."""
    for group in groups:
        if group.reason == DOTTED:
            yield from group.split_dotted()
        else:
            yield group


COMPRESSED = {
    b"\x1f\x8b": "gzipped",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"\x1f\x9d": "compressed with compress",
    b"PK\x03\x04": "a zip archive",
}
"""First bytes of a file -> its kind."""


def _check_start(path: Path, file: int, end: int) -> None:
    """Refuse a file that is not a tar archive; a damaged archive has a valid header somewhere."""
    start = os.pread(file, BLOCK, 0)
    if not start:
        raise UserError(f"the shard {path} is empty; download it again, or remove it.")
    kind = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is not None and parse_header(start) is None:
        remedy = "with gunzip, or stream it" if kind == "gzipped" else "and give the .tar inside"
        raise UserError(
            f"the shard {path} is {kind}, and samples in it cannot be found by their place; "
            f"unpack it {remedy}."
        )
    if any(start) and _next_header(file, 0, end) is None:
        raise UserError(
            f"the shard {path} is damaged: there is no tar header in it; download it again, or "
            "remove it."
        )


def _walk(file: int, end: int, position: int = 0) -> Iterator[Member | Damage]:
    fields: dict[str, bytes] = {}  # of the next member, set by headers of names
    while position < end:
        block = os.pread(file, BLOCK, position)
        header = parse_header(block)
        payload = position + BLOCK
        if header is None and _only_zeros(file, position, end):
            return
        if header is not None:
            size = payload_size(header, fields)
            position = payload + -(-size // BLOCK) * BLOCK
            valid = payload + size <= end
            if header.type in NAMES:
                valid = valid and size <= MAX_NAMES_BYTES
                more = read_names(header.type, os.pread(file, size, payload)) if valid else None
                valid = more is not None
                fields |= more or {}
            else:
                if header.type == OLD_SPARSE:  # blocks of a map precede the payload
                    more = sparse_map(block, lambda place: os.pread(file, BLOCK, place), payload)
                    position += more
                if header.type != FOLDER:
                    yield member_of(header, fields, payload, size)
                fields = {}
            if valid:
                continue
        following = _next_header(file, payload, end)
        if following is None:
            if header is None and any(block):
                yield Damage(DAMAGED if len(block) == BLOCK else TRUNCATED)
            else:
                zeros = header is None and not _is_zero(file, payload, end)
                yield Damage(ZEROS if zeros else TRUNCATED)
            return
        # Zeros may be a hole that a download left, or the end of an archive that another one was
        # appended to: the two cannot be distinguished.
        yield Damage(ZEROS if header is None and not any(block) else DAMAGED)
        position, fields = following, {}
    yield Damage(TRUNCATED)  # a complete archive ends with zeros


def _only_zeros(file: int, start: int, end: int) -> bool:
    """Whether the file ends here as an archive does: with zeros up to a whole record.

    More zeros are left by a download that had set the size of its file beforehand.
    """
    return end - start < 2 * BLOCK + RECORD and not any(os.pread(file, end - start, start))


def _is_zero(file: int, start: int, end: int) -> bool:
    return not any(any(os.pread(file, CHUNK, place)) for place in range(start, end, CHUNK))


def _next_header(file: int, start: int, end: int) -> int | None:
    """Offset in bytes of the first valid header at or after `start`."""
    octal = np.isin(np.arange(256), list(b"01234567 \0"))
    for position in range(start, end, CHUNK):
        chunk = os.pread(file, CHUNK, position)
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
        sums = blocks[:, 148:156]  # checksum digits: cheaper to test than the checksum itself
        for number in np.flatnonzero(octal[sums].all(1) & sums.any(1)):
            if parse_header(blocks[number].tobytes()) is not None:
                return position + int(number) * BLOCK
    return None
