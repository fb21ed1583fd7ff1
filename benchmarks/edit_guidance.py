"""The two scales of an edit's guidance, against EditEval on the tiny preset.

`guidance_scale` follows the instruction, `image_guidance_scale` the source. Every pair edits the
same held-out images from the same noise. For each: the share of edits that are right in everything,
with Wilson's 95% interval, and the share of shapes that the edit does not touch and that stay as
they are, whatever became of the rest.

    python benchmarks/edit_guidance.py --out benchmarks/results/edit_guidance.json
    python benchmarks/edit_guidance.py --edits 60          # quick

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from reporting import machine, versions, write_result

from triptych.evaluation.shapes.common import ImageOptions
from triptych.evaluation.shapes.edit_eval import edit_for, edits, kept
from triptych.evaluation.statistics import mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.pipeline import UnifiedPipeline
from triptych.shapes_world.checker import check

PACKAGES = ("torch", "transformers", "diffusers")
SCALES = (1.0, 1.5, 3.0, 5.0)
IMAGE_SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parser.add_argument("--from", dest="source", default="tiny", help="model to load")
    parser.add_argument("--edits", type=int, default=240, help="edits")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before, started = machine(), time.process_time()
    model = UnifiedPipeline.from_pretrained(parsed.source, device="cpu").model
    samples = edits(parsed.edits)
    table = []
    print("guidance  image  right                 kept")
    for scale in SCALES:
        for image_scale in IMAGE_SCALES:
            config = GenerationConfig(guidance_scale=scale, image_guidance_scale=image_scale)
            images = edit_for(model, samples, ImageOptions(60, 0, config))
            pairs = list(zip(images, samples, strict=True))
            right = mean(check(image, edit.request) for image, edit in pairs)
            same = mean(value for image, edit in pairs for value in kept(image, edit))
            low, high = wilson(right, len(samples))
            print(f"{scale:8} {image_scale:6}  {right:.3f} [{low:.3f}, {high:.3f}]  {same:.3f}")
            row = {"guidance_scale": scale, "image_guidance_scale": image_scale}
            row |= {"right": right, "interval": [low, high], "kept": same}
            table.append({name: _rounded(value) for name, value in row.items()})
    figures = {
        "edits": parsed.edits,
        "table": table,
        "best": max(table, key=lambda row: row["right"]),
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": versions(*PACKAGES),
    }
    write_result(parsed.out, figures, machine=before)


def _rounded(value):
    return [round(each, 4) for each in value] if isinstance(value, list) else round(value, 4)


if __name__ == "__main__":
    main()
