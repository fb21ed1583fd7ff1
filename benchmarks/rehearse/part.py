"""One part of the rehearsal: python -m rehearse.part NAME PRESET LAYERS FOLDER."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from rehearse import image, training, weights  # noqa: E402

Part = Callable[[str, int, Path], dict[str, Any]]


def _stage(stage: str) -> Part:
    def part(preset: str, layers: int, folder: Path) -> dict[str, Any]:
        return training.step(preset, stage, layers, folder)

    return part


PARTS: dict[str, Part] = {
    "weights": weights.write,
    **{stage: _stage(stage) for stage in ("encoder", "decoder", "stage1", "stage2")},
    "stage2 cached": training.cached,
    "resume": training.resumed,
    **{stage: _stage(stage) for stage in ("stage3", "edits", "joint")},
    "image features": image.features,
    "image pixels": image.pixels,
    "published layout": weights.there_and_back,
}


def main() -> None:
    """Run the part and print its figures as the last line."""
    name, preset, layers, folder = sys.argv[1:]
    print(json.dumps(PARTS[name](preset, int(layers), Path(folder))))


if __name__ == "__main__":
    main()
