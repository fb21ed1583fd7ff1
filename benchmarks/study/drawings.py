"""Curves and bars as SVG, in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = {"clip_flow": "#5b7fff", "clip_mse": "#d6882d", "vae_flow": "#1f9d55", "joint": "#b05bd6"}
OTHER = "#8a8a90"
WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 680, 300, 50, 110, 12, 40  # pixels, and margins
BAR, GAP, NAMES = 16, 14, 110


def curves(by_arm: Mapping[str, Sequence[Sequence[tuple[float, float]]]], below: str) -> str:
    """A thin line for each run, its arm's name at the end of the last.

    Args:
        by_arm: points (x, y) of each run, both from 0 to 1.
        below: what x is.
    """
    top = max((y for runs in by_arm.values() for run in runs for _, y in run), default=0)
    ceiling = max(0.1, -(-top * 10 // 1) / 10)

    def place(x: float, y: float) -> str:
        across, up = (WIDE - LEFT - RIGHT) * x, (HIGH - TOP - BOTTOM) * (1 - y / ceiling)
        return f"{LEFT + across:.1f},{TOP + up:.1f}"

    parts = []
    for tenth in range(round(ceiling * 10) + 1):
        (x1, y1), (x2, y2) = (place(x, tenth / 10).split(",") for x in (0, 1))
        parts.append(f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' class='rule'/>")
        parts.append(f"<text x='{LEFT - 8}' y='{y1}' class='end'>{tenth / 10:.1f}</text>")
    for row, (arm, runs) in enumerate(by_arm.items()):
        colour = COLOURS.get(arm, OTHER)
        for run in runs:
            points = " ".join(place(x, y) for x, y in run)
            parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}'/>")
        x, y = WIDE - RIGHT + 14, TOP + 14 + 20 * row
        parts.append(f"<text x='{x}' y='{y}' style='fill: {colour}'>{escape(arm)}</text>")
    parts.append(f"<text x='{LEFT}' y='{HIGH - 10}' class='soft'>{escape(below)}</text>")
    return _svg(HIGH, parts)


def bars(by_arm: Mapping[str, tuple[float, tuple[float, float] | None, Sequence[float]]]) -> str:
    """A bar for each arm with its 95% interval and a dot for each seed: mean, interval, values."""
    ends = [
        max([middle, *values, *(interval or ())]) for middle, interval, values in by_arm.values()
    ]
    longest = max([*ends, 1e-9])

    def place(x: float) -> float:
        return NAMES + (WIDE - NAMES - 70) * min(max(x / longest, 0), 1)

    parts = []
    for row, (arm, (middle, interval, values)) in enumerate(by_arm.items()):
        y, colour = GAP + row * (BAR + GAP), COLOURS.get(arm, OTHER)
        centre = y + BAR / 2
        parts.append(f"<text x='{NAMES - 8}' y='{centre + 5}' class='end'>{escape(arm)}</text>")
        parts.append(
            f"<rect x='{NAMES}' y='{y}' width='{place(middle) - NAMES:.1f}' height='{BAR}' "
            f"fill='{colour}' opacity='0.55'/>"
        )
        if interval:
            low, high = map(place, interval)
            parts.append(
                f"<path d='M{low:.1f},{centre} H{high:.1f} M{low:.1f},{y} v{BAR} M{high:.1f},{y} "
                f"v{BAR}' class='whisker'/>"
            )
        parts += [f"<circle cx='{place(v):.1f}' cy='{centre}' r='3' class='dot'/>" for v in values]
        parts.append(f"<text x='{WIDE - 60}' y='{centre + 5}'>{middle:.3f}</text>")
    return _svg(GAP + len(by_arm) * (BAR + GAP), parts)


def _svg(high: int, parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {WIDE} {high}' width='{WIDE}' role='img'>{''.join(parts)}</svg>"
