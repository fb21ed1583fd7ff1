"""Data set statistics: counts, lengths, sizes, duplicates, and a grid of captioned images."""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from triptych.data_modules.decode import Decoder
from triptych.data_modules.parallel import parallel_map
from triptych.data_modules.sources.base import BadSample, DataSource, bad_sample_on_error
from triptych.utils.errors import ImageError
from triptych.utils.image_reader import read_header

CHUNK = 256  # consecutive samples that one process reads
SIDE = 160  # pixels of an image in the grid
LINES = 3  # of its caption
MARGIN = 8
BIN_EDGES = (0, 1, 5, 10, 20, 40, 80, 160, 320)  # lower edges of the histogram bins, in words


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
    """Hash of each key -> number of samples; also of `captions` and `images`."""
    captions: Counter[bytes] = field(default_factory=Counter)
    images: Counter[bytes] = field(default_factory=Counter)

    def add(self, other: DatasetStatistics) -> None:
        """Add the statistics of other samples."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def collect_statistics(
    source: DataSource,
    *,
    max_samples: int = 20000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetStatistics:
    """Read at most `max_samples` evenly spaced samples of an open source.

    Images are opened, which finds their size, but not decoded.

    Args:
        source: open source.
        max_samples: maximum number of samples to read.
        workers: number of processes; None takes all cores.
        progress: callback that receives the number of samples read, and of all to read.
    """
    numbers = evenly_spaced(len(source), max_samples)
    chunks = [numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK)]
    statistics = DatasetStatistics()
    for chunk in parallel_map(_StatisticsOf(source), chunks, workers):
        statistics.add(chunk)
        if progress:
            progress(statistics.samples, len(numbers))
    return statistics


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` evenly spaced members of range(length)."""
    return (np.arange(min(length, count)) * length // max(min(length, count), 1)).tolist()


@dataclass
class _StatisticsOf:
    """Picklable function from sample numbers to their statistics."""

    source: DataSource

    def __call__(self, numbers: Sequence[int]) -> DatasetStatistics:
        statistics, source = DatasetStatistics(samples=len(numbers)), self.source
        for number in numbers:
            statistics.keys[_hash(source.key(number).encode("utf-8", "replace"))] += 1
            try:
                caption = source.caption(number)
                statistics.words.append(len(caption.split()))
                statistics.caption_bytes.append(len(caption.encode("utf-8", "replace")))
                statistics.captions[_hash(caption.encode("utf-8", "replace"))] += 1
                if source.has_image(number, "image"):
                    self._add_image(statistics, number)
            except BadSample as bad:
                statistics.problems[bad.reason] += 1
        return statistics

    def _add_image(self, statistics: DatasetStatistics, number: int) -> None:
        content = self.source.image_bytes(number)
        with bad_sample_on_error(self.source.key(number), "image"):
            image = read_header(content, Decoder().limits)
        statistics.sizes.append(image.size)
        statistics.formats[image.format] += 1
        statistics.image_bytes.append(len(content))
        statistics.images[_hash(content)] += 1


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).digest()


def repeated(counts: Counter[bytes]) -> int:
    """Number of samples that repeat an earlier one."""
    return sum(counts.values()) - len(counts)


def histogram(values: Sequence[int], width: int = 40) -> list[str]:
    """Lines of a text histogram of the values, with BIN_EDGES."""
    edges = [*BIN_EDGES, np.inf]
    counts = np.histogram(values, edges)[0]
    lines = []
    for first, last, count in zip(BIN_EDGES, [*BIN_EDGES[1:], None], counts.tolist(), strict=True):
        if count:
            label = f"{first} or more" if last is None else f"{first}-{last - 1}"
            bar = "#" * max(1, round(width * count / counts.max()))
            lines.append(f"{'0' if label == '0-0' else label:>12} {count:>9,} {bar}")
    return lines


def make_image_grid(source: DataSource, images: int = 48, columns: int = 8) -> Image.Image:
    """Grid of evenly spaced images, prepared as for the model, with captions below.

    An unreadable image is replaced by the reason.
    """
    numbers = evenly_spaced(len(source), images)
    font = ImageFont.load_default(12)
    line = sum(font.getmetrics())
    cell_width, cell_height = SIDE + MARGIN, SIDE + MARGIN + LINES * line + MARGIN
    columns = max(1, min(columns, len(numbers)))
    rows = -(-len(numbers) // columns)
    grid = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw = ImageDraw.Draw(grid)
    decode = Decoder()
    for place, number in enumerate(numbers):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * cell_width, MARGIN + row * cell_height
        try:
            (square,) = decode(source.image_bytes(number), SIDE)
            grid.paste(Image.fromarray(square.permute(1, 2, 0).numpy()), (left, top))
        except (BadSample, ImageError) as bad:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="red")
            draw.multiline_text((left + 4, top + 4), _wrapped(bad.reason, font), "red", font)
        try:
            caption = source.caption(number)
        except BadSample as bad:
            caption = bad.reason
        draw.multiline_text((left, top + SIDE), _wrapped(caption, font), "black", font, spacing=0)
    return grid


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Text wrapped to the width of an image; shortened to LINES lines."""
    width = int(SIDE / font.getlength("abcdefghijklmnopqrstuvwxyz ") * 27)
    plain = "".join(char if char.isprintable() else " " for char in text[:1000])
    lines = textwrap.wrap(plain, width, max_lines=LINES, placeholder=" ...")
    return "\n".join(lines)
