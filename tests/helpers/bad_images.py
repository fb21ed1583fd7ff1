"""Image files that are expensive to decode, and files that are no images.

Use `BAD`, name -> (content, reason), wherever images of strangers are read.
"""

import io
import struct
import zlib

from PIL import Image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, content):
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(width, height, depth=8, colour=0, pixels=None, before=b""):
    """A PNG, grey by default, of zlib-packed rows that each begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height)) if pixels is None else pixels
    parts = [(b"IDAT", pixels), (b"IEND", b"")]
    first = png_chunk(b"IHDR", header)
    return b"\x89PNG\r\n\x1a\n" + first + before + b"".join(png_chunk(*part) for part in parts)


def large_png(width, height):
    """Black; packed piece by piece, in little memory."""
    packer, row = zlib.compressobj(9), bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, pixels=packed)


def segment(kind, content):
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def jpeg(before=b"", **options):
    """A JPEG of 64x48 with bytes put behind its first marker."""
    data = encoded(Image.new("RGB", (64, 48), "red"), "JPEG", **options)
    return data[:2] + before + data[2:]


def many_scans(scans, size=(1000, 1000)):
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("RGB", size, "red"), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def sequential_scans(scans):
    """A JPEG that is not progressive, and whose one scan stands for a single component."""
    data = bytearray(encoded(Image.new("RGB", (1000, 1000), "red"), "JPEG"))
    place = data.index(b"\xff\xda")
    length = int.from_bytes(data[place + 2 : place + 4])
    scan = segment(0xDA, b"\1" + data[place + 5 : place + 7] + b"\0\x3f\0")
    return bytes(data[:place]) + (scan + bytes(data[place + 2 + length : -2])) * scans + b"\xff\xd9"


def overlapping_exif(entries=5000):
    """EXIF whose every entry points to the same 60 kB."""
    entry = b"".join(struct.pack("<HHLL", 0x9000 + n, 7, 60_000, 8) for n in range(entries))
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, entries) + entry + bytes(4)


def gif(comment=b"", frames=1):
    images = [Image.new("L", (64, 48), n) for n in range(frames)]
    data = encoded(images[0], "GIF", save_all=frames > 1, append_images=images[1:])
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 128 else 13
    return data[:place] + comment + data[place:]


def gif_comment(blocks):
    return b"!\xfe" + (b"\xff" + b"x" * 255) * blocks + b"\0"


BAD = {
    "empty": (b"", "is damaged"),
    "text": (b"a text, no image", "is damaged"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is damaged"),
    "tiff": (encoded(Image.new("RGB", (64, 48)), "TIFF"), "is damaged"),
    "jpeg cut off": (jpeg()[:-300], "is damaged"),
    "png cut off": (png(64, 48)[:60], "is damaged"),
    "160 megapixels": (large_png(12_800, 12_500), "has too many pixels"),
    "a strip": (large_png(50_000, 2), "is too long for its width"),
    "2,000 scans": (many_scans(2000), "has too many scans"),
    "2,000 scans of one component": (sequential_scans(2000), "has too many scans"),
    "scans hidden behind an end in a comment": (
        many_scans(2000).replace(b"\xff\xda", segment(0xFE, b"\xff\xd9") + b"\xff\xda"),
        "has too m",
    ),
    "a million chunks": (
        png(64, 48, before=png_chunk(b"teXt", b"") * 1_000_000),
        "has too much metadata",
    ),
    "packed texts": (
        png(64, 48, before=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 60),
        "has too much metadata",
    ),
    "large metadata": (jpeg(segment(0xE5, bytes(65_000)) * 300), "has too much metadata"),
    "exif in 900 segments": (
        jpeg(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 200),
        "has too much metadata",
    ),
    "many segments": (jpeg(segment(0xFE, b"") * 500_000), "has too much metadata"),
    "junk between segments": (jpeg(bytes(5_000_000)), "is damaged"),
    "padding between segments": (jpeg(b"\xff" * 5_000_000), "is damaged"),
    "a comment of 10 MB": (gif(gif_comment(40_000)), "has too much metadata"),
    "compressed bmp": (
        (lambda data: data[:30] + b"\1" + data[31:])(encoded(Image.new("P", (64, 48)), "BMP")),
        "is of an unknown format",
    ),
}
"""Name -> (file, what a reader says)."""
