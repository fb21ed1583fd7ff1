"""The demo's page: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --paper: #fafaf8; --card: #fff; --ink: #1d1d1f; --soft: #6b6b70;
  --line: #e3e3e0; --good: #1f9d55; --bad: #d64545; --bar: #5b7fff; }
@media (prefers-color-scheme: dark) { :root { --paper: #131316; --card: #1c1c21; --ink: #ececf0;
  --soft: #9a9aa3; --line: #303037; --good: #3ecf7f; --bad: #ff6b6b; --bar: #7f9bff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 2rem; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.15rem; margin: 3rem 0 0.25rem; }
p { color: var(--soft); margin: 0 0 1rem; max-width: 46rem; }
img { display: block; image-rendering: pixelated; border-radius: 4px; width: 192px;
  max-width: 100%; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 0.9rem; max-width: 436px; }
.single { max-width: 222px; }
.card b { display: block; font-weight: 600; margin-bottom: 0.6rem; }
.card small { color: var(--soft); display: block; }
.pairs { display: grid; grid-template-columns: repeat(2, auto); gap: 0.5rem; align-items: start; }
.right, .wrong { border-radius: 7px; border: 3px solid var(--good); position: relative; }
.wrong { border-color: var(--bad); }
.right::after, .wrong::after { content: "\\2713"; position: absolute; right: 3px; bottom: 3px;
  width: 1.2em; border-radius: 50%; background: var(--good); color: #fff; font-size: 0.8rem;
  line-height: 1.2em; text-align: center; }
.wrong::after { content: "\\2717"; background: var(--bad); }
.good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; max-width: 50rem; }
th, td { text-align: left; padding: 0.4rem 0.75rem 0.4rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
tr.total td { font-weight: 600; }
td.bar { width: 30%; }
meter { width: 100%; accent-color: var(--bar); }
"""


@dataclass
class Row:
    """A score: its share of `number`, its 95% interval, and what chance gives."""

    name: str
    score: float
    interval: tuple[float, float]
    number: int
    chance: float
    total: bool = False


@dataclass
class Drawn:
    """Pictures uint8 [K,48,48,3] for one caption, and the checker's verdict on each."""

    caption: str
    task: str
    pictures: numpy.ndarray
    right: Sequence[bool]


@dataclass
class Answered:
    """A question about a picture uint8 [48,48,3]."""

    picture: numpy.ndarray
    question: str
    given: str
    expected: str
    right: bool


@dataclass
class Rebuilt:
    """A picture uint8 [48,48,3] and what encoder and decoder make of it."""

    original: numpy.ndarray
    picture: numpy.ndarray
    right: bool


def render(
    title: str,
    rows: Sequence[Row],
    drawn: Sequence[Drawn],
    answered: Sequence[Answered],
    rebuilt: Sequence[Rebuilt],
    note: str,
) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(note)}</p>
<h2>Scores</h2>
<p>On held-out captions and pictures, beside what a model would get that has learned nothing of
its input.</p>
{_table(rows)}
<h2>Text to picture</h2>
<p>Held-out captions, four seeds each, nothing picked. Green: the checker reads from the pixels
exactly what the caption asks.</p>
<div class="cards">{"".join(map(_drawn, drawn))}</div>
<h2>Picture to text</h2>
<p>Questions about held-out pictures, with the model's answer.</p>
<div class="cards">{"".join(map(_answered, answered))}</div>
<h2>Picture to picture</h2>
<p>Originals, left, through the image encoder and the pixel decoder, right.</p>
<div class="cards">{"".join(map(_rebuilt, rebuilt))}</div>
</body>
</html>
"""


def _table(rows: Sequence[Row]) -> str:
    head = "<tr><th>score</th><th>model</th><th></th><th>95% interval</th><th>chance</th></tr>"
    return f"<table>{head}{''.join(map(_score, rows))}</table>"


def _score(row: Row) -> str:
    low, high = row.interval
    return (
        f"<tr class='{'total' if row.total else 'part'}'><td>{escape(row.name)}</td>"
        f"<td>{row.score:.1%}</td><td class='bar'><meter value='{row.score:.4f}'></meter></td>"
        f"<td>{low:.1%} to {high:.1%} of {row.number}</td><td>{row.chance:.1%}</td></tr>"
    )


def _drawn(one: Drawn) -> str:
    pictures = zip(one.pictures, one.right, strict=True)
    return (
        f"<div class='card'><b>{escape(one.caption)}</b><div class='pairs'>"
        f"{''.join(_picture(picture, right) for picture, right in pictures)}</div>"
        f"<small>{escape(one.task.replace('_', ' '))}</small></div>"
    )


def _answered(one: Answered) -> str:
    verdict = "good" if one.right else "bad"
    expected = "" if one.right else f"<small>expected: {escape(one.expected)}</small>"
    return (
        f"<div class='card single'>{_image(one.picture)}<small>{escape(one.question)}</small>"
        f"<span class='{verdict}'>{escape(one.given) or '(nothing)'}</span>{expected}</div>"
    )


def _rebuilt(one: Rebuilt) -> str:
    return (
        f"<div class='card'><div class='pairs'>{_image(one.original)}"
        f"{_picture(one.picture, one.right)}</div></div>"
    )


def _picture(picture: numpy.ndarray, right: bool) -> str:
    return f"<div class='{'right' if right else 'wrong'}'>{_image(picture)}</div>"


def _image(picture: numpy.ndarray) -> str:
    """A picture uint8 [H,W,3] as a PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return (
        f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    )
