"""Curves as a PNG picture, drawn with Pillow: no plotting library is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Curve = Sequence[tuple[float, float]]
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"]
WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 560, 380, 60, 20, 40, 50  # of a panel, and its margins


def draw_curves(
    path: Path,
    panels: dict[str, dict[str, Curve]],
    below: str,
    bands: dict[str, tuple[float, float]] | None = None,
) -> None:
    """Write panels side by side: title -> name of a curve -> its points (x, y), y from 0 to 1.

    `below` says what x is; `bands` shades an interval of y behind a panel's curves.
    """
    picture = Image.new("RGB", (WIDE * len(panels), HIGH), "white")
    for number, (title, curves) in enumerate(panels.items()):
        panel = Image.new("RGB", (WIDE, HIGH), "white")
        _panel(ImageDraw.Draw(panel), title, curves, below, (bands or {}).get(title))
        picture.paste(panel, (WIDE * number, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _panel(
    draw: ImageDraw.ImageDraw,
    title: str,
    curves: dict[str, Curve],
    below: str,
    band: tuple[float, float] | None,
) -> None:
    font = ImageFont.load_default(14)
    longest = max(x for curve in curves.values() for x, _ in curve)
    lowest = min(y for curve in curves.values() for _, y in curve)
    floor = max(0.0, int(lowest * 10 - 0.5) / 10)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (WIDE - LEFT - RIGHT) * x / longest
        return LEFT + across, TOP + (HIGH - TOP - BOTTOM) * (1 - y) / (1 - floor)

    if band is not None:
        draw.rectangle((*place(0, band[1]), *place(longest, band[0])), fill="#e6eef6")
    for tenth in range(round(floor * 10), 11):
        draw.line((place(0, tenth / 10), place(longest, tenth / 10)), fill="#dddddd")
        draw.text((LEFT - 8, place(0, tenth / 10)[1]), f"{tenth / 10:.1f}", "black", font, "rm")
    for x in range(0, int(longest) + 1, max(1, round(longest / 6))):
        draw.text((place(x, floor)[0], HIGH - BOTTOM + 6), str(x), "black", font, "mt")
    draw.text((WIDE / 2, 10), title, "black", font, "mt")
    draw.text((WIDE / 2, HIGH - 24), below, "black", font, "mt")
    for number, (name, curve) in enumerate(curves.items()):
        colour, points = COLOURS[number], [place(*point) for point in curve]
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        draw.text((WIDE - RIGHT - 8, HIGH - BOTTOM - 20 * (number + 1)), name, colour, font, "rm")
