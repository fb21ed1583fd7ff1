"""Guidance and time in sampling, against ShapeEval on the tiny preset.

One setting at a time is changed, the others stay those of the preset, on the same captions and
seeds for all:

    guidance_scale      1 (none) to 8
    guidance_interval   where guidance works, in t; 1 is noise
    guidance_rescale    0 to 1, at the preset's scale and at a high one, where it has most to do
    shift, steps        of the sampling grid alone; training keeps the preset's own, and "auto" is
                        the rule sqrt(m/n) s for the preset's features

Scores are shares of right images with Wilson's 95% interval. A point counts as different from the
preset's own if the two disagree on captions more than chance would (McNemar's exact test, p < .05).

    python benchmarks/guidance.py --out benchmarks/results/guidance.json
    python benchmarks/guidance.py --images 60          # quick

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from reporting import machine, versions, write_result

from triptych.evaluation.shapes.shape_eval import examples
from triptych.evaluation.statistics import wilson
from triptych.inference import image_generation
from triptych.inference.pipeline import UnifiedPipeline
from triptych.loss import dimension_shift
from triptych.modules import UnifiedModule
from triptych.shapes_world.checker import check
from triptych.utils.images import to_arrays

PACKAGES = ("torch", "transformers", "diffusers")
SCALES = (1.0, 1.5, 2.0, 4.0, 6.0, 8.0)
HIGH = 8.0
"""Guidance scale at which features leave the range of the data."""
INTERVALS = ((0.0, 0.8), (0.0, 0.95), (0.4, 1.0), (0.7, 1.0), (0.8, 0.97))
RESCALES = (0.35, 0.7, 1.0)
SHIFTS = (1.0, 2.0, 6.0)
STEPS = (5, 10)
Point = dict[str, Any]


def points(model: UnifiedModule) -> dict[str, list[Point]]:
    """Settings that are scored, by what they change."""
    auto = dimension_shift(model.generation.feature_shape, model.encoder.feature_std or 1.0)
    return {
        "guidance_scale": [{"guidance_scale": each} for each in SCALES],
        "guidance_interval": [
            *({"guidance_interval": each} for each in INTERVALS),
            {"guidance_scale": HIGH, "guidance_interval": (0.4, 1.0)},
        ],
        "guidance_rescale": [
            *({"guidance_rescale": each} for each in RESCALES),
            *({"guidance_scale": HIGH, "guidance_rescale": each} for each in RESCALES),
        ],
        "shift and steps": [
            *({"shift": each} for each in (round(auto, 4), *SHIFTS)),
            *({"num_inference_steps": each} for each in STEPS),
            *({"shift": 1.0, "num_inference_steps": each} for each in STEPS),
        ],
    }


class Scored:
    """Held-out captions with their conditions, computed once."""

    def __init__(self, model: UnifiedModule, images: int, batch: int = 60) -> None:
        self.model, self.samples = model, examples("eval", images)
        self.flow = model.generation.flow
        self.parts = [range(n, min(n + batch, images)) for n in range(0, images, batch)]
        self.conditions = [
            image_generation.condition(model, [self.samples[n].caption for n in part])
            for part in self.parts
        ]

    def right(self, point: Point) -> list[bool]:
        """Whether the image of each caption is right."""
        settings = dict(point)
        generation = self.model.generation
        generation.flow = replace(self.flow, shift=settings.pop("shift", self.flow.shift))
        found: list[bool] = []
        for part, condition in zip(self.parts, self.conditions, strict=True):
            features = generation.sample(condition, list(part), **settings)
            images = to_arrays(self.model.decode(features, list(part)))
            pairs = zip(images, part, strict=True)
            found += [check(image, self.samples[n].request) for image, n in pairs]
        generation.flow = self.flow
        return found


def mcnemar(one: list[bool], other: list[bool]) -> float:
    """Exact two-sided p that paired successes differ by chance: a coin for each disagreement."""
    gained = sum(b and not a for a, b in zip(one, other, strict=True))
    lost = sum(a and not b for a, b in zip(one, other, strict=True))
    number, least = gained + lost, min(gained, lost)
    tail = sum(math.comb(number, k) for k in range(least + 1)) / 2**number
    return min(1.0, 2 * tail)


def name_of(point: Point) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items()) or "preset"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parser.add_argument("--from", dest="source", default="tiny", help="model to load")
    parser.add_argument("--images", type=int, default=240, help="captions")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before, started = machine(), time.process_time()
    model = UnifiedPipeline.from_pretrained(parsed.source, device="cpu").model
    scored = Scored(model, parsed.images)
    own = scored.right({})
    table: dict[str, dict[str, object]] = {}

    def add(group: str, point: Point, right: list[bool]) -> None:
        share = sum(right) / len(right)
        interval, p = wilson(share, len(right)), mcnemar(own, right)
        mark = "" if p >= 0.05 else ("  better" if share > sum(own) / len(own) else "  worse")
        low, high = (round(each, 4) for each in interval)
        print(f"{name_of(point):52} {share:.3f} [{low:.3f}, {high:.3f}]{mark}", flush=True)
        row = {"score": round(share, 4), "interval": [low, high], "p": round(p, 4)}
        table.setdefault(group, {})[name_of(point)] = row

    add("preset", {}, own)
    for group, some in points(model).items():
        print(f"-- {group}")
        for point in some:
            add(group, point, scored.right(point))
    figures = {
        "images": parsed.images,
        "preset": {
            "guidance_scale": model.generation.sampling.guidance_scale,
            "num_inference_steps": model.generation.sampling.num_inference_steps,
            "shift": model.generation.shift,
        },
        "table": table,
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": versions(*PACKAGES),
    }
    write_result(parsed.out, figures, machine=before)


if __name__ == "__main__":
    main()
