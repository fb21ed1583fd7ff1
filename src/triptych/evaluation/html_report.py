"""A benchmark's report as a page: one HTML file that needs neither network nor script."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.shapes.demo_page import STYLE
from triptych.utils.errors import UserError
from triptych.utils.images import open_picture

SHOWN = 60  # pictures at most, evenly taken from all items
THUMBNAIL = 192  # pixels of the long side

MORE_STYLE = """
.card { width: 222px; overflow-wrap: anywhere; }
.card img { image-rendering: auto; }
.card b { font-size: 0.9rem; }
.half, .left-out { border-radius: 7px; border: 3px solid var(--line); }
pre { color: var(--soft); white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclass
class Row:
    """A score, and its texts as the table shows them."""

    name: str
    score: float
    shown: str
    interval: str
    number: str


def render(
    title: str,
    judged: str,
    rows: Sequence[Row],
    items: Sequence[Mapping[str, Any]],
    folder: Path,
    settings: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        title: the benchmark.
        judged: who judged, and what became of the items, in a line.
        items: as in `Report.items`; their pictures lie in `folder`.
        settings: shown as they are.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(judged)}</p>
<h2>Scores</h2>
{_table(rows)}
{_gallery(items, folder)}
<h2>Settings</h2>
<pre>{escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>
</body>
</html>
"""


def _table(rows: Sequence[Row]) -> str:
    head = "<tr><th>score</th><th></th><th></th><th>95% interval</th><th>items</th></tr>"
    return f"<table>{head}{''.join(map(_row, rows))}</table>"


def _row(row: Row) -> str:
    # a bar where the score is a share; a distance such as FID has no end to fill up to
    bar = f"<meter value='{row.score:.4f}'></meter>" if 0 <= row.score <= 1 else ""
    return (
        f"<tr><td>{escape(row.name.replace('_', ' '))}</td><td>{row.shown}</td>"
        f"<td class='bar'>{bar}</td><td>{row.interval}</td><td>{row.number}</td></tr>"
    )


def _gallery(items: Sequence[Mapping[str, Any]], folder: Path) -> str:
    items = [item for item in items if item.get("picture")]
    if not items:
        return ""
    number = min(SHOWN, len(items))
    shown = [items[n * len(items) // number] for n in range(number)]
    return (
        f"<h2>Pictures</h2><p>{number} of {len(items)}, taken evenly, none picked.</p>"
        f"<div class='cards'>{''.join(_card(item, folder) for item in shown)}</div>"
    )


def _card(item: Mapping[str, Any], folder: Path) -> str:
    score = item.get("score")
    state = item.get("state", "scored").replace("_", " ")
    lines = [state if score is None else f"{score:g}", item.get("note") or ""]
    frame = "left-out" if score is None else {0: "wrong", 1: "right"}.get(score, "half")
    return (
        f"<div class='card'><b>{escape(item.get('prompt', item.get('key', '')))}</b>"
        f"<div class='{frame}'>{_thumbnail(folder / item['picture'])}</div>"
        f"{''.join(f'<small>{escape(line)}</small>' for line in lines if line)}</div>"
    )


def _thumbnail(path: Path) -> str:
    try:
        picture = open_picture(path)
    except UserError:
        return "<small>no picture that can be read</small>"
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return (
        f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    )
