"""The demo's page: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from triptych.evaluation.html_page import render_page


@dataclass
class DemoRow:
    """A score: its share of `number`, its 95% interval, and what chance gives."""

    name: str
    score: float
    interval: tuple[float, float]
    number: int
    chance: float
    total: bool = False


@dataclass
class Drawn:
    """Images uint8 [K,48,48,3] for one caption, and the checker's verdict on each."""

    caption: str
    task: str
    images: numpy.ndarray
    right: Sequence[bool]


@dataclass
class Answered:
    """A question about an image uint8 [48,48,3]."""

    image: numpy.ndarray
    question: str
    given: str
    expected: str
    right: bool


@dataclass
class Rebuilt:
    """An image uint8 [48,48,3] and what encoder and decoder make of it."""

    original: numpy.ndarray
    image: numpy.ndarray
    right: bool


def render(
    title: str,
    rows: Sequence[DemoRow],
    drawn: Sequence[Drawn],
    answered: Sequence[Answered],
    rebuilt: Sequence[Rebuilt],
    note: str,
) -> str:
    """Render the whole page."""
    return render_page(
        "demo.html",
        title=title,
        rows=rows,
        drawn=drawn,
        answered=answered,
        rebuilt=rebuilt,
        note=note,
    )
