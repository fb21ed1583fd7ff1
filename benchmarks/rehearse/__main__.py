"""Rehearsal of a preset at its real widths and image sizes, with few layers and random weights.

Every stage takes a training step, one image is made from a prompt to pixels, a run is resumed, and
the weights go to the published layout and back. Each part is a process of its own; a table tells
its seconds, its peak memory and the numbers that must match. The last line is JSON; the exit status
is 1 if a part failed.

    make rehearse PRESET=blip3o_4b LAYERS=2
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parts import run_part
from reporting import machine, versions, write_result

PARTS = (
    "weights",
    *("encoder", "decoder", "stage1", "stage2", "stage2 cached", "resume"),
    *("stage3", "edits", "joint"),
    *("image features", "image pixels", "published layout"),
)
NEEDS = {"resume": "stage2 cached", "image pixels": "image features", "stage2 cached": "stage2"}
PACKAGES = ("torch", "lightning", "transformers", "diffusers", "timm")
SECONDS = 1800  # limit of a part, for a machine that does much else
FREE_GB = 16  # of the disk, at LAYERS=2 of the largest preset


def main() -> None:
    """Check the words, run the parts, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--layers", default="2", help="blocks of each network")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these, and what they need")
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parsed = parser.parse_args()
    layers = checked(parsed.preset, parsed.layers)
    before, began = machine(), time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    folder = Path(tempfile.mkdtemp(prefix="rehearse-"))
    print(f"{parsed.preset} at {layers} layers, in {folder}", flush=True)
    try:
        for name in wanted(parsed.only):
            if not stage_has_recipe(parsed.preset, name):
                found[name] = {"skipped": "the preset has no recipe for it"}
            elif any("error" in found.get(each, {}) for each in ("weights", NEEDS.get(name, ""))):
                found[name] = {"error": "what it needs has failed"}
            else:
                words = [sys.executable, "-m", "rehearse.part", name, parsed.preset, str(layers)]
                found[name] = judged(run_part([*words, folder], SECONDS))
            print(row(name, found[name]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [name for name, result in found.items() if "error" in result]
    figures = {
        "preset": parsed.preset,
        "layers": layers,
        "peak_gb": max(result.get("peak_gb", 0) for result in found.values()),
        "seconds": round(time.monotonic() - began, 1),
        "failed": failed,
        "skipped": [name for name, result in found.items() if "skipped" in result],
        "parts": found,
    }
    write_result(parsed.out, figures, machine=before, versions=versions(*PACKAGES))
    sys.exit(bool(failed))


def checked(preset: str, layers: str) -> int:
    """The number of layers; ends with one sentence if a word is wrong. Imports no torch."""
    known = sorted(preset_names())
    if preset not in known:
        sys.exit(f"the preset {preset!r} is unknown; choose one of {', '.join(known)}.")
    if not layers.isascii() or not layers.isdigit() or int(layers) < 1:
        sys.exit(f"LAYERS is {layers!r}; give a whole number of 1 or more.")
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if preset != "tiny" and free < FREE_GB:
        sys.exit(f"{tempfile.gettempdir()} has {free:.0f} GB free; the rehearsal needs {FREE_GB}.")
    return int(layers)


def preset_names() -> list[str]:
    """Presets that `conf/presets` has."""
    from triptych.utils.paths import presets

    return list(presets())


def stage_has_recipe(preset: str, part: str) -> bool:
    """False of a stage that the preset says is not to be trained."""
    from triptych.cli.recipes import recipe_of
    from triptych.utils.errors import UserError
    from triptych.utils.paths import conf_files

    if part not in conf_files("stages/*.yaml"):
        return True
    try:
        recipe_of(preset, part)
    except UserError:
        return False
    return True


def wanted(only: list[str] | None) -> list[str]:
    """The parts to run, in order: all, or some with what they need."""
    if not only:
        return list(PARTS)
    chosen = {"weights", *only}
    while more := {NEEDS[name] for name in chosen if name in NEEDS} - chosen:
        chosen |= more
    return [name for name in PARTS if name in chosen]


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a part, failed also if a number is above its bound."""
    above = [
        f"{what}: {difference:g}, at most {bound:g}"
        for what, (difference, bound) in result.get("match", {}).items()
        if not difference <= bound
    ]
    if above and "error" not in result:
        result["error"] = "; ".join(above)
    return result


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table, and one for each number that must match."""
    state = "skipped" if "skipped" in result else "FAILED" if "error" in result else "ok"
    seconds, peak = result.get("seconds", 0), result.get("peak_gb", 0)
    lines = [f"{name:18} {state:8} {seconds:7.1f} s {peak:6.2f} GB"]
    if "error" in result or "skipped" in result:
        lines[0] += f"  {result.get('error') or result['skipped']}"
    for what, (difference, bound) in result.get("match", {}).items():
        lines.append(f"    {what}: {difference:g} (at most {bound:g})")
    if result.get("cut"):
        lines.append(f"    cut further to fit: {', '.join(result['cut'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
