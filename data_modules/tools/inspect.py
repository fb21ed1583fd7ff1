"""Data set statistics: counts, lengths, sizes, duplicates, and a sheet of images to look at."""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from triptych.data_modules.decode import Decoder
from triptych.data_modules.parallel import each
from triptych.data_modules.sources.base import BadSample, DataSource
from triptych.utils.errors import ImageError
from triptych.utils.image_reader import read_header

CHUNK = 256  # samples, read by one process in a row
SIDE = 160  # pixels of an image on the sheet
LINES = 3  # of its caption
MARGIN = 8
WORDS = (0, 1, 5, 10, 20, 40, 80, 160, 320)  # where the bars of the histogram begin


@dataclass
class DatasetStatistics:
    """Statistics of some samples."""

    samples: int = 0
    words: list[int] = field(default_factory=list)
    """Word count of each caption."""
    caption_bytes: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each image, in pixels."""
    image_bytes: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    """reason -> samples"""
    keys: Counter[bytes] = field(default_factory=Counter)
    """Hashes, as those of `captions` and `images`: how often each came."""
    captions: Counter[bytes] = field(default_factory=Counter)
    images: Counter[bytes] = field(default_factory=Counter)

    def add(self, other: DatasetStatistics) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def collect_statistics(
    source: DataSource,
    most: int = 20000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetStatistics:
    """Read `most` samples of an open source, evenly spread; all if there are not more.

    Images are opened, which finds their size, but not decoded.
    """
    numbers = spread(len(source), most)
    chunks = [numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK)]
    found = DatasetStatistics()
    for part in each(_Look(source), chunks, workers):
        found.add(part)
        if progress:
            progress(found.samples, len(numbers))
    return found


def spread(length: int, most: int) -> list[int]:
    """`most` of range(length), evenly spread."""
    return (np.arange(min(length, most)) * length // max(min(length, most), 1)).tolist()


@dataclass
class _Look:
    source: DataSource

    def __call__(self, numbers: Sequence[int]) -> DatasetStatistics:
        found, source = DatasetStatistics(samples=len(numbers)), self.source
        for number in numbers:
            found.keys[_hash(source.key(number).encode("utf-8", "replace"))] += 1
            try:
                caption = source.caption(number)
                found.words.append(len(caption.split()))
                found.caption_bytes.append(len(caption.encode("utf-8", "replace")))
                found.captions[_hash(caption.encode("utf-8", "replace"))] += 1
                if source.has_image(number, "image"):
                    self._image(found, number)
            except BadSample as bad:
                found.problems[bad.reason] += 1
        return found

    def _image(self, found: DatasetStatistics, number: int) -> None:
        content = self.source.image_bytes(number)
        try:
            image = read_header(content, Decoder().limits)
        except ImageError as error:
            key = self.source.key(number)
            raise BadSample(key, f"image {error.reason}", error.detail) from error
        found.sizes.append(image.size)
        found.formats[image.format] += 1
        found.image_bytes.append(len(content))
        found.images[_hash(content)] += 1


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).digest()


def repeated(counts: Counter[bytes]) -> int:
    """Number of samples that repeat an earlier one."""
    return sum(counts.values()) - len(counts)


def histogram(values: Sequence[int], width: int = 40) -> list[str]:
    """Lines of a histogram of the values, with the numbers of WORDS as bin edges."""
    edges = [*WORDS, np.inf]
    counts = np.histogram(values, edges)[0]
    lines = []
    for first, last, count in zip(WORDS, [*WORDS[1:], None], counts.tolist(), strict=True):
        if count:
            label = f"{first} or more" if last is None else f"{first}-{last - 1}"
            bar = "#" * max(1, round(width * count / counts.max()))
            lines.append(f"{'0' if label == '0-0' else label:>12} {count:>9,} {bar}")
    return lines


def make_image_grid(source: DataSource, images: int = 48, columns: int = 8) -> Image.Image:
    """Images as the model gets them (short side scaled, centre cropped), captions below.

    Evenly spread over the source; where one cannot be read, the sheet says why.
    """
    numbers = spread(len(source), images)
    font = ImageFont.load_default(12)
    line = sum(font.getmetrics())
    wide, high = SIDE + MARGIN, SIDE + MARGIN + LINES * line + MARGIN
    columns = max(1, min(columns, len(numbers)))
    rows = -(-len(numbers) // columns)
    sheet = Image.new("RGB", (columns * wide + MARGIN, rows * high + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    decode = Decoder()
    for place, number in enumerate(numbers):
        left, top = MARGIN + place % columns * wide, MARGIN + place // columns * high
        try:
            (square,) = decode(source.image_bytes(number), SIDE)
            sheet.paste(Image.fromarray(square.permute(1, 2, 0).numpy()), (left, top))
        except (BadSample, ImageError) as bad:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="red")
            draw.multiline_text((left + 4, top + 4), _wrapped(bad.reason, font), "red", font)
        try:
            caption = source.caption(number)
        except BadSample as bad:
            caption = bad.reason
        draw.multiline_text((left, top + SIDE), _wrapped(caption, font), "black", font, spacing=0)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> str:
    """`text` in LINES lines that are as wide as an image; shortened where it is longer."""
    letters = int(SIDE / font.getlength("abcdefghijklmnopqrstuvwxyz ") * 27)
    plain = "".join(one if one.isprintable() else " " for one in text[:1000])
    lines = textwrap.wrap(plain, letters, max_lines=LINES, placeholder=" ...")
    return "\n".join(lines)
