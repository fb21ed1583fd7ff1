"""Charts drawn by matplotlib, as PNG or SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from triptych.evaluation.report import Interval
from triptych.utils.atomic_write import saving
from triptych.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bar = tuple[float | None, Interval | None]
"""A value, None if there is no score, and its interval."""

COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd"),
    *("#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"),
)
DPI = 100
THICKNESS, GAP, WIDTH = 0.16, 0.14, 7.6  # inches: bar thickness, group spacing, chart width


def new_figure(width: float, height: float, **layout: Any) -> tuple[Figure, Any]:
    """Create a figure of a size in inches, and its axes; `layout` is passed to `Figure.subplots`.

    No window system is needed: the figure uses matplotlib's Agg and SVG backends.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "charts need matplotlib, which is not installed; run `pip install 'triptych[eval]'`."
        ) from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(**layout)


def write_figure(figure: Figure, file: BinaryIO, file_format: str) -> None:
    """Write a figure as "png" or "svg"; equal figures give equal bytes."""
    from matplotlib import rc_context

    undated = {"Software": None} if file_format == "png" else dict.fromkeys(("Date", "Creator"))
    with rc_context({"svg.hashsalt": "triptych", "svg.fonttype": "none"}):
        figure.savefig(file, format=file_format, metadata=undated)


def save_figure(figure: Figure, path: Path) -> None:
    """Write an SVG file if `path` ends in .svg, else a PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    with saving(path) as file:
        write_figure(figure, file, "svg" if path.suffix.lower() == ".svg" else "png")


def draw_bars(path: Path, groups: Sequence[str], series: Mapping[str, Sequence[Bar]]) -> None:
    """Write a horizontal bar chart: a group for each score, a colour for each series.

    The scale is from 0 to 1. A group with larger values, such as FID, has its own scale, from 0 to
    its longest bar; the printed numbers distinguish the two.

    Args:
        path: output file, PNG or SVG.
        groups: names of the scores, from top to bottom.
        series: bars of each series by its name, one for each group.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    pitch = len(series) * THICKNESS + GAP
    height = 0.4 + 0.2 * len(series) + pitch * len(groups)
    figure, axes = new_figure(WIDTH, height)
    longest = [
        max(1.0, *(_end(bars[row]) for bars in series.values())) for row in range(len(groups))
    ]
    for number, (name, bars) in enumerate(series.items()):
        places = [row * pitch + (number + 0.5) * THICKNESS for row in range(len(groups))]
        lengths = [max(0.0, bar[0] or 0.0) / most for bar, most in zip(bars, longest, strict=True)]
        axes.barh(
            places, lengths, 0.8 * THICKNESS, color=COLOURS[number % len(COLOURS)], label=name
        )
        for place, bar, most in zip(places, bars, longest, strict=True):
            _annotate(axes, place, bar, most)
    middles = [row * pitch + len(series) * THICKNESS / 2 for row in range(len(groups))]
    axes.set_yticks(middles, groups, parse_math=False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set(xlim=(0, 1.12), ylim=(len(groups) * pitch - GAP / 2, -GAP / 2))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for text in figure.legend(loc="outside upper left", frameon=False).get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def _end(bar: Bar) -> float:
    """The right end of a bar or its interval."""
    value, interval = bar
    return max([value or 0.0, *(interval or ())])


def _annotate(axes: Axes, place: float, bar: Bar, longest: float) -> None:
    """Draw the interval and the number of a bar, on a scale where `longest` is 1."""
    value, interval = bar
    text = "no score" if value is None else f"{value:.3f}"
    if interval:
        axes.plot(
            [max(0.0, x) / longest for x in interval], [place] * 2, "|-", c="black", lw=1, ms=5
        )
    end = max(0.0, _end(bar)) / longest
    axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center")
