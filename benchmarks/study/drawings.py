"""Curves and bars as SVG, in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from triptych.evaluation.charts import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"clip_flow": "#5b7fff", "clip_mse": "#d6882d", "vae_flow": "#1f9d55", "joint": "#b05bd6"}
OTHER = "#8a8a90"
INK, RULE = "#010203", "#030201"  # written as variables of the page's style, for its dark mode
WIDTH, HEIGHT, BAR = 7.2, 3.1, 0.31  # inches: of a chart, of the curves, of a bar with its gap


def curves(by_arm: Mapping[str, Sequence[Sequence[tuple[float, float]]]], below: str) -> str:
    """A thin line for each run, in the colour of its arm.

    Args:
        by_arm: points (x, y) of each run, both from 0 to 1.
        below: label of the x axis.
    """
    figure, axes = new_figure(WIDTH, HEIGHT)
    for arm, runs in by_arm.items():
        for number, run in enumerate(runs):
            label = arm if number == 0 else None
            axes.plot(*zip(*run, strict=True), c=_colour(arm), alpha=0.8, label=label)
    top = max((y for runs in by_arm.values() for run in runs for _, y in run), default=0)
    axes.set(xlabel=below, xlim=(0, 1), ylim=(0, max(0.1, top)))
    axes.grid(axis="y", color=RULE)
    figure.legend(loc="outside right upper", frameon=False, labelcolor="linecolor", handlelength=1)
    return _svg(figure, axes)


def bars(by_arm: Mapping[str, tuple[float, tuple[float, float] | None, Sequence[float]]]) -> str:
    """A bar for each arm with its 95% interval and a dot for each seed: mean, interval, values."""
    figure, axes = new_figure(WIDTH, 0.1 + BAR * len(by_arm))
    ends = [max([mean, *values, *(interval or ())]) for mean, interval, values in by_arm.values()]
    longest = max([*ends, 1e-9])
    for row, (arm, (mean, interval, values)) in enumerate(by_arm.items()):
        axes.barh(row, mean, 0.5, color=_colour(arm), alpha=0.55)
        if interval:
            axes.plot(interval, [row, row], "|-", c=INK, ms=8, mew=1.5)
        axes.plot(values, [row] * len(values), "o", c=INK, ms=4)
        axes.text(1.04 * longest, row, f"{mean:.3f}", va="center", c=INK)
    axes.set_yticks(range(len(by_arm)), by_arm)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set(xlim=(0, 1.15 * longest), ylim=(len(by_arm) - 0.5, -0.5))
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, axes)


def _colour(arm: str) -> str:
    return COLOURS.get(arm, OTHER)


def _svg(figure: Figure, axes: Axes) -> str:
    """The figure as an element of the page, on its background and with its text colour."""
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    file = io.BytesIO()
    write_figure(figure, file, "svg")
    text = re.sub("<metadata>.*</metadata>", "", file.getvalue().decode(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(RULE, "var(--line)")
    return " ".join(text.split()).replace("<svg", "<svg role='img'", 1)
