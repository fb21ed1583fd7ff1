"""Draws images with labels under them on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
LEAST_WIDTH = 144  # a label in a narrower column is one word a line
FONT_SIZE = 11
MOST_LINES = 8  # an untrained language model does not stop
PAPER, INK, FRAME = (255, 255, 255), (40, 40, 40), (200, 200, 200)


def stack_rows(*rows: np.ndarray) -> np.ndarray:
    """Each uint8 [N,H,W,3], the first on top, with a line of paper between: uint8 [N,H',W,3]."""
    number, _, width, _ = rows[0].shape
    line = np.full((number, 1, width, 3), PAPER, np.uint8)
    parts = [part for row in rows for part in (row, line)]
    return np.concatenate(parts[:-1], axis=1)


def labelled_image_grid(
    images: np.ndarray, labels: Sequence[str], columns: int, scale: int = 1
) -> Image.Image:
    """Images uint8 [N,H,W,3], `scale` times enlarged without smoothing, a label under each."""
    font = ImageFont.load_default(FONT_SIZE)
    high, wide = images.shape[1] * scale, images.shape[2] * scale
    width = max(wide, LEAST_WIDTH)
    wrapped = [_wrap(label, width, font) for label in labels]
    rows = [range(n, min(n + columns, len(images))) for n in range(0, len(images), columns)]
    heights = [_height([wrapped[n] for n in row], font) + high + 2 * MARGIN for row in rows]
    size = (min(columns, len(images)) * (width + MARGIN) + MARGIN, sum(heights) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, number in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            image = Image.fromarray(images[number])
            sheet.paste(image.resize((wide, high), Image.Resampling.NEAREST), (left, top))
            pen.rectangle((left - 1, top - 1, left + wide, top + high), outline=FRAME)
            pen.text((left, top + high + MARGIN // 2), wrapped[number], INK, font)
        top += height
    return sheet


def _wrap(label: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    characters = int(width / font.getlength("abcdefghijklmnopqrstuvwxyz ") * 27)
    lines = [
        textwrap.fill(line, max(1, characters), max_lines=MOST_LINES, placeholder=" ...")
        for line in label.split("\n")
    ]
    return "\n".join(lines)


def _height(labels: Sequence[str], font: ImageFont.FreeTypeFont) -> int:
    """Pixels that the longest of the wrapped labels takes."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return max(int(pen.textbbox((0, 0), label, font)[3]) for label in labels)
