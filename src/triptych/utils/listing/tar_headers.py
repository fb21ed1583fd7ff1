"""Headers of a tar archive: checksums, types of members, and the extra headers of long names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

BLOCK = 512  # bytes; headers and payloads begin at its multiples
MAX_NAMES_BYTES = 1 << 20  # of a header of names; a larger one is taken for damage

LINK = "a member is a link"
SPARSE = "a member is a sparse file"
NOT_A_FILE = "a member is no regular file"


class Header(NamedTuple):
    """Fields of one header."""

    name: bytes
    size: int
    type: bytes


REGULAR = frozenset((b"0", b"\0", b"7"))
PAX = frozenset((b"x", b"X"))  # X as Solaris wrote it
NAMES = PAX | {b"L", b"K", b"g"}  # headers of names: fields of the next member, or of all
FOLDER = b"5"
LINKS = frozenset((b"1", b"2"))
EMPTY = LINKS | {b"3", b"4", FOLDER, b"6"}  # and devices: types without payload
OLD_SPARSE = b"S"


class Member(NamedTuple):
    """A file in the archive, or another type of member in its place."""

    name: bytes
    offset: int
    """Offset of the payload, in bytes from the start of the archive."""
    size: int
    """Size of the payload, in bytes."""
    renamed: bool
    """Whether the name came from an extra header of its own: pax, or GNU's long names."""
    fault: str = ""
    """Reason why it is not readable by its offset: LINK, SPARSE or NOT_A_FILE."""


def member_of(header: Header, fields: dict[str, bytes], payload: int, size: int) -> Member:
    """Make the member of a header, with the fields of the headers of names before it."""
    fault = ""
    if header.type == OLD_SPARSE or any(key.startswith("GNU.sparse.") for key in fields):
        fault = SPARSE
    elif header.type not in REGULAR:
        fault = LINK if header.type in LINKS else NOT_A_FILE
    name = fields.get("GNU.sparse.name", fields.get("path", header.name))
    return Member(name, payload, size, "path" in fields, fault)


def sparse_map(header: bytes, read: Callable[[int], bytes], position: int) -> int:
    """Size of the blocks that continue the map of GNU's old sparse files, from `position` on."""
    size, continues = 0, header[482:483] == b"\1"
    while continues:
        block = read(position + size)
        size += BLOCK
        continues = block[504:505] == b"\1"
    return size


def parse_header(block: bytes) -> Header | None:
    """Parse a header; None if its checksum is wrong or it is not a header.

    In the oldest format, of Unix v7, only the checksum identifies a header. It is the sum of bytes,
    which some old programs treated as signed.
    """
    if len(block) < BLOCK or not block[148:156].strip(b" \0"):
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    others = block[:148] + b" " * 8 + block[156:]
    if size is None or checksum is None:
        return None
    if checksum != sum(others) and checksum != sum(others) - 256 * sum(b > 127 for b in others):
        return None
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""  # not GNU's
    old_folder = block[156:157] == b"\0" and name.endswith(b"/")
    kind = FOLDER if old_folder else block[156:157]
    return Header(prefix + b"/" + name if prefix else name, size, kind)


def _number(digits: bytes) -> int | None:
    """Parse a number of a header: octal digits, or GNU's binary format for large numbers."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    digits = digits.lstrip(b" \0").split(b"\0")[0].strip(b" ") or b"0"
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def payload_size(header: Header, fields: dict[str, bytes]) -> int:
    """Size in bytes of the payload after a header."""
    if header.type in EMPTY:
        return 0
    larger = fields.get("size", b"")  # of a payload beyond the limit of a header
    return int(larger) if header.type not in NAMES and larger.isdigit() else header.size


def read_names(kind: bytes, payload: bytes) -> dict[str, bytes] | None:
    """Parse the fields that a header of names sets on the next member; None if damaged."""
    if kind == b"L":
        return {"path": payload.rstrip(b"\0")}
    fields: dict[str, bytes] = {}
    if kind not in PAX:
        return fields
    start, end = 0, len(payload.rstrip(b"\0"))
    while start < end:  # records are "LENGTH KEYWORD=VALUE\n"
        space = payload.find(b" ", start, start + 8)
        length = payload[start : max(space, start)]
        stop = start + int(length) if length.isdigit() else start
        keyword, equals, value = payload[space + 1 : stop - 1].partition(b"=")
        if not equals or payload[stop - 1 : stop] != b"\n":
            return None
        fields[keyword.decode("utf-8", "replace")] = value
        start = stop
    return fields
