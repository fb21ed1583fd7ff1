"""Provenance of the images that a report is about, from their own metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.evaluation.report import Report
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import read_metadata

OF_AN_IMAGE = ("prompt", "seed", "id")


def add_provenance(report: Report) -> None:
    """Add each image's seeds to its item, and to the settings how many were made how.

    settings["made"] is [{"images": N, ...settings of the pipeline}], one for each way that there
    is; images that were not made by triptych say nothing, and are counted as such.
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
        way = {name: value for name, value in made.items() if name not in OF_AN_IMAGE}
        counted = ways.setdefault(json.dumps(way, sort_keys=True), {"images": 0, **way})
        counted["images"] += 1
    report.settings["made"] = list(ways.values())
