"""Curves as a chart of several panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triptych.evaluation.charts import new_figure, save_figure

Curve = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 5.6, 3.8  # inches, of a panel


def draw_curves(
    path: Path,
    panels: dict[str, dict[str, Curve]],
    below: str,
    bands: dict[str, tuple[float, float]] | None = None,
) -> None:
    """Write panels side by side.

    Args:
        path: the file, PNG or SVG.
        panels: title -> name of a curve -> its points (x, y), y from 0 to 1.
        below: label of the x axis.
        bands: title -> an interval of y to shade behind the panel's curves.
    """
    figure, rows = new_figure(WIDTH * len(panels), HEIGHT, ncols=len(panels), squeeze=False)
    for axes, (title, curves) in zip(rows[0], panels.items(), strict=True):
        lowest = min(y for curve in curves.values() for _, y in curve)
        floor = max(0.0, int(lowest * 10 - 0.5) / 10)  # a tenth, so that small steps look small
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), "o-", label=name, clip_on=False)
        if title in (bands or {}):
            axes.axhspan(*bands[title], color="#e6eef6", zorder=0)
        axes.set(title=title, xlabel=below, xlim=(0, None), ylim=(floor, 1))
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
    save_figure(figure, path)
