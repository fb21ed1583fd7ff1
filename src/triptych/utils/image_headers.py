"""Checks of the structure of image files for hidden work, before decoding.

Pillow iterates over segments and chunks in Python and joins metadata by copying, and libjpeg
processes all pixels once for every scan. A file of some kilobytes can take minutes, for any size in
pixels. One pass over the structure, without decoding, counts the work of the decoders.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from triptych.utils.errors import ImageError

MAX_SCANS = 100
MAX_PARTS = 2000  # segments, chunks or blocks, beside those of the pixels
MAX_METADATA = 16 << 20  # bytes beside the pixels
MAX_EXIF = 1 << 20  # bytes of JPEG segments, which Pillow joins one by one
MAX_COMPRESSED_TEXTS = 16  # PNG chunks, each up to 1 MB once it is unpacked
MAX_JUNK = 1 << 16  # bytes between JPEG segments, skipped one by one

TOO_MUCH_METADATA = "has too much metadata"
TOO_MANY_SCANS = "has too many scans"
DAMAGED = "is damaged"

# The next marker in a JPEG: neither a stuffed byte, nor padding, nor a restart of the same scan.
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
SOI, EOI, SOS, APP1, TEMPORARY = 0xD8, 0xD9, 0xDA, 0xE1, 0x01
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))  # APP0 to APP15, comment
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
ORIENTATION = 0x0112  # EXIF tag
UNSIGNED = {1: "B", 3: "H", 4: "L"}  # EXIF types


def count_scans(data: bytes) -> int:
    """Number of scans of a JPEG.

    A sequential JPEG whose first scan has all components has one, which ends the count before the
    compressed pixels: those of most files are not read.

    Raises:
        ImageError: there are too many scans or segments, or too much metadata.
    """
    place, scans, metadata, exif, junk = 2, 0, 0, 0, 0
    several, components = False, 0
    for _ in range(MAX_PARTS):
        marker = MARKER.search(data, place)
        if marker is None:
            return scans  # cut off, as the decoder will say
        if not scans:
            junk += marker.start() - place
        kind, place = data[marker.end() - 1], marker.end()
        if kind == EOI:
            return scans
        if kind in (SOI, TEMPORARY):
            continue
        length = int.from_bytes(data[place : place + 2])
        if length < 2 or junk > MAX_JUNK:
            raise ImageError(DAMAGED, "a JPEG segment of no length, or bytes between them")
        if kind in FRAMES:
            several, components = kind in PROGRESSIVE, int.from_bytes(data[place + 7 : place + 8])
        elif kind == SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(TOO_MANY_SCANS, f"more than {MAX_SCANS}")
            if not several and int.from_bytes(data[place + 2 : place + 3]) >= components:
                return scans
            several = True
        elif kind in METADATA:
            metadata += length
            exif += length if kind == APP1 and data.startswith(b"Exif", place + 2) else 0
            if metadata > MAX_METADATA or exif > MAX_EXIF:
                raise ImageError(TOO_MUCH_METADATA, "in JPEG segments")
        place += length
    raise ImageError(TOO_MUCH_METADATA, f"more than {MAX_PARTS:,} JPEG segments")


def check_png(data: bytes) -> None:
    """Refuse a PNG with too many chunks or too much text.

    Raises:
        ImageError: there are too many.
    """
    place, parts, metadata, texts = 8, 0, 0, 0
    most = MAX_PARTS + len(data) // 1024  # pixels come in chunks too, of some kilobytes each
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return
        place += 12 + length
        parts += 1
        if kind not in (b"IDAT", b"fdAT"):
            metadata += length
            texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if parts > most or metadata > MAX_METADATA or texts > MAX_COMPRESSED_TEXTS:
            raise ImageError(TOO_MUCH_METADATA, "in PNG chunks")


def count_gif_frames(data: bytes) -> int:
    """Number of images in a GIF, at most 2.

    Raises:
        ImageError: there are too many blocks of metadata, or of pixels.
    """
    place = 13 + _colours(data, 10)
    extensions = pixels = frames = 0
    while place < len(data):
        kind, place = data[place], place + 1
        if kind == ord(","):
            frames += 1
            if frames == 2:
                return frames
            place += 9 + _colours(data, place + 8) + 1
        elif kind == ord("!"):
            place += 1
        else:
            return frames  # the end, or damage
        while place < len(data) and data[place]:
            place += 1 + data[place]
            extensions, pixels = extensions + (kind == ord("!")), pixels + (kind == ord(","))
            if extensions > MAX_PARTS or pixels > MAX_PARTS + len(data) // 64:
                raise ImageError(TOO_MUCH_METADATA, "in GIF blocks")
        place += 1
    return frames


def _colours(data: bytes, flags: int) -> int:
    """Size in bytes of a GIF's colour table, with flags at index `flags`."""
    value = int.from_bytes(data[flags : flags + 1])
    return 6 << (value & 7) if value & 128 else 0


def check_bmp(data: bytes) -> None:
    """Refuse a compressed BMP, which Pillow decodes slowly in Python.

    Raises:
        ImageError: it is compressed.
    """
    if int.from_bytes(data[14:18], "little") >= 40 and data[30:31] in (b"\1", b"\2"):
        raise ImageError("is of an unknown format", "a compressed BMP")


def find_orientation(info: Mapping[str, Any]) -> int:
    """EXIF orientation, 1 to 8, from the metadata of an image opened by Pillow; 1 is upright.

    Pillow's own reader copies all values that EXIF points to, so that 64 kB of entries with the
    same target become 350 MB. This function reads a single value.
    """
    found = 0
    for exif in _exif(info):
        found = _orientation_in(exif) or found
    if not found:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else str(xmp).encode())
        found = int(match[1]) if match else 0
    return found if found in range(1, 9) else 1


def _exif(info: Mapping[str, Any]) -> Iterator[bytes]:
    if isinstance(exif := info.get("exif"), bytes):
        yield exif
    elif isinstance(profile := info.get("Raw profile type exif"), str):  # ImageMagick's, of a PNG
        try:
            yield bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return


def _orientation_in(exif: bytes) -> int | None:
    """Orientation in EXIF; None if it is missing or the EXIF is damaged."""
    exif = exif[re.match(rb"(?:Exif\0\0)*", exif).end() :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    found = None
    try:
        (first,) = struct.unpack_from(order + "L", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, first)
        for place in range(first + 2, first + 2 + 12 * entries, 12):
            tag, kind, number = struct.unpack_from(order + "HHL", exif, place)
            if tag == ORIENTATION and kind in UNSIGNED and number == 1:
                (found,) = struct.unpack_from(order + UNSIGNED[kind], exif, place + 8)
    except struct.error:  # cut off
        pass
    return found
