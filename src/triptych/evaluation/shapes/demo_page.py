"""HTML page of the demo: one file without network access or scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from triptych.evaluation.html_page import render_page


@dataclass
class DemoRow:
    """A score: a share of `number` items, its 95% interval, and the score of chance if known."""

    name: str
    score: float
    interval: tuple[float, float]
    number: int
    chance: float | None
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
    """An image uint8 [48,48,3] and its reconstruction by encoder and decoder."""

    original: numpy.ndarray
    image: numpy.ndarray
    right: bool


@dataclass
class Edited:
    """An image uint8 [48,48,3], and the image that an instruction made of it."""

    source: numpy.ndarray
    instruction: str
    image: numpy.ndarray
    right: bool


@dataclass
class StoryTurn:
    """What is said in one turn of a story; images uint8 [48,48,3]."""

    asked: str
    text: str
    images: Sequence[numpy.ndarray]
    right: bool


def render(
    title: str,
    rows: Sequence[DemoRow],
    *,
    drawn: Sequence[Drawn],
    answered: Sequence[Answered],
    rebuilt: Sequence[Rebuilt],
    edited: Sequence[Edited],
    told: Sequence[Sequence[StoryTurn]],
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
        edited=edited,
        told=told,
        note=note,
    )
