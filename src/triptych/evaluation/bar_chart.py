"""Bars with intervals as a PNG picture, drawn with Pillow: no plotting library is asked for."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from triptych.evaluation.report import Interval

Bar = tuple[float | None, Interval | None]
"""A height, None where there is none, and its interval."""

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"]
# Of the picture, in pixels: a bar's thickness, the gap between groups, the scale's width, margins.
THICK, GAP, SCALE, MARGIN, NUMBERS = 14, 12, 520, 16, 70


def draw_bars(path: Path, groups: Sequence[str], series: Mapping[str, Sequence[Bar]]) -> None:
    """Write lying bars, a group for each score, a colour for each series.

    Shares are drawn on a scale from 0 to 1. A group that is on no such scale, as FID is not, has
    one of its own, from 0 to the longest of its bars; the numbers say which is which.

    Args:
        groups: their names, from top to bottom.
        series: name -> one bar a group.
    """
    font = ImageFont.load_default(13)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = MARGIN + 8 + max(math.ceil(measure.textlength(name, font)) for name in groups)
    legend = len(series) * (THICK + 4) + GAP
    high = MARGIN * 2 + legend + len(groups) * (len(series) * THICK + GAP)
    picture = Image.new("RGB", (left + SCALE + NUMBERS + MARGIN, high), "white")
    draw = ImageDraw.Draw(picture)
    for number, name in enumerate(series):
        top = MARGIN + number * (THICK + 4)
        draw.rectangle((left, top, left + THICK, top + THICK), fill=_colour(number))
        draw.text((left + THICK + 6, top + THICK / 2), name, "black", font, "lm")
    top = MARGIN + legend
    for row, group in enumerate(groups):
        bars = [some[row] for some in series.values()]
        middle = top + len(bars) * THICK / 2
        draw.text((left - 8, middle), group, "black", font, "rm")
        _group(draw, font, bars, left, top)
        top += len(bars) * THICK + GAP
    draw.line((left, MARGIN + legend - 4, left, top - GAP + 4), fill="black")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _group(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    bars: Sequence[Bar],
    left: int,
    top: float,
) -> None:
    ends = [value for value, _ in bars if value is not None]
    ends += [end for _, interval in bars if interval for end in interval]
    longest = max([1.0, *ends])

    def place(value: float) -> float:
        return left + SCALE * max(0.0, value) / longest

    for number, (value, interval) in enumerate(bars):
        above, middle = top + number * THICK, top + (number + 0.5) * THICK
        if value is None:
            draw.text((left + 4, middle), "no score", "#777777", font, "lm")
            continue
        draw.rectangle((left, above + 1, place(value), above + THICK - 2), fill=_colour(number))
        end = place(value)
        if interval:
            low, high = map(place, interval)
            draw.line((low, middle, high, middle), fill="black", width=1)
            for x in (low, high):
                draw.line((x, middle - 3, x, middle + 3), fill="black", width=1)
            end = max(end, high)
        draw.text((end + 6, middle), f"{value:.3f}", "black", font, "lm")


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
