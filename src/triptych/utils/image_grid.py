"""Labelled grids of images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
MIN_WIDTH = 144  # pixels of a column, for readable labels
FONT_SIZE = 11
MAX_LINES = 8  # of a label: an untrained language model does not stop
PAPER, INK, FRAME = (255, 255, 255), (40, 40, 40), (200, 200, 200)


def stack_rows(*rows: np.ndarray) -> np.ndarray:
    """Stack arrays of images uint8 [N,H,W,3] vertically, with a line between: uint8 [N,H',W,3]."""
    number, _, width, _ = rows[0].shape
    line = np.full((number, 1, width, 3), PAPER, np.uint8)
    stacked = [each for row in rows for each in (row, line)]
    return np.concatenate(stacked[:-1], axis=1)


def labelled_image_grid(
    images: np.ndarray, labels: Sequence[str], columns: int, scale: int = 1
) -> Image.Image:
    """Grid of images uint8 [N,H,W,3], upscaled by `scale` without smoothing, with labels below."""
    font = ImageFont.load_default(FONT_SIZE)
    high, wide = images.shape[1] * scale, images.shape[2] * scale
    width = max(wide, MIN_WIDTH)
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
        textwrap.fill(line, max(1, characters), max_lines=MAX_LINES, placeholder=" ...")
        for line in label.split("\n")
    ]
    return "\n".join(lines)


def _height(labels: Sequence[str], font: ImageFont.FreeTypeFont) -> int:
    """Height in pixels of the longest wrapped label."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return max(int(pen.textbbox((0, 0), label, font)[3]) for label in labels)
