"""Benchmark report as one HTML file without network access or scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.html_page import render_page
from triptych.utils.errors import UserError
from triptych.utils.images import open_image

SHOWN = 60  # maximum number of images, evenly spaced over all items
THUMBNAIL = 192  # long side in pixels


@dataclass
class ScoreRow:
    """A score, and its cells in the table."""

    name: str
    score: float
    shown: str
    interval: str
    number: str


def render(
    title: str,
    judged: str,
    rows: Sequence[ScoreRow],
    *,
    items: Sequence[Mapping[str, Any]],
    folder: Path,
    settings: Mapping[str, Any],
) -> str:
    """Render the whole page.

    Args:
        title: name of the benchmark.
        judged: line with the judge and the counts of the items.
        rows: rows of the table of scores.
        items: entries of `Report.items`, with images in `folder`.
        folder: folder of the images.
        settings: settings of the report, shown as JSON.
    """
    items = [item for item in items if item.get("image")]
    number = min(SHOWN, len(items))
    return render_page(
        "report.html",
        title=title,
        judged=judged,
        rows=rows,
        cards=[_card(items[n * len(items) // number], folder) for n in range(number)],
        number=len(items),
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )


def _card(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    score = item.get("score")
    state = item.get("state", "scored").replace("_", " ")
    lines = [state if score is None else f"{score:g}", item.get("note")]
    return {
        "heading": item.get("prompt", item.get("key", "")),
        "frame": "left-out" if score is None else {0: "wrong", 1: "right"}.get(score, "half"),
        "thumbnail": _thumbnail(folder / item["image"]),
        "lines": [line for line in lines if line],
    }


def _thumbnail(path: Path) -> Image.Image | None:
    """The downscaled image; None if it cannot be read."""
    try:
        image = open_image(path)
    except UserError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image
