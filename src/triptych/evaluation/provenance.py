"""Provenance of the scored images, from their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.evaluation.report import Report
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import read_metadata

PER_IMAGE = ("prompt", "seed", "id")  # metadata that differs from image to image


def add_provenance(report: Report) -> None:
    """Add the seeds of each image to its item, and generation settings to the report's settings.

    settings["made"] is [{"images": N, ...generation settings}], one entry for each distinct set of
    settings. Images without metadata of triptych are counted under "unknown".
    """
    ways: dict[str, dict[str, Any]] = {}
    for item in report.items:
        if item["state"] != "scored" or "image" not in item:
            continue
        try:
            made = read_metadata(Path(report.settings["folder"]) / item["image"])
        except UserError:
            made = {"unknown": "the image does not say"}
        asked = made.pop("request", {})
        if seeds := asked.get("seeds") or [made[name] for name in ("seed",) if name in made]:
            item["seeds"] = seeds
        way = {name: value for name, value in made.items() if name not in PER_IMAGE}
        counted = ways.setdefault(json.dumps(way, sort_keys=True), {"images": 0, **way})
        counted["images"] += 1
    report.settings["made"] = list(ways.values())
