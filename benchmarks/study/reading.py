"""Results of finished runs: means and intervals over seeds, and verdicts that follow from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from reporting import machine, versions

from study.plan import ARMS, Plan, Run
from study.runs import SCORES, SHIPPED, cpu_seconds, done
from triptych.checkpoints import atomic_checkpoint
from triptych.evaluation.statistics import mean
from triptych.utils.errors import UserError

# The 97.5% point of Student's t by degrees of freedom, from 1 on; the last serves for more, which
# makes intervals a little too wide.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

MEASURES = {
    "alignment": "ShapeEval, held-out captions: share of images right",
    "retrieval": "retrieval: share of images whose nearest true one is that of their caption",
    "clear": "quality: share of images that show shapes and nothing that is none",
    "diversity_pixels": "diversity in pixels: mean absolute difference, 0 to 1",
    "diversity_features": "diversity in the image encoder's features: cosine distance, 0 to 2",
    "understanding": "question answering: share of answers right",
}


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its 95% interval, None where one seed alone has none."""

    mean: float
    interval: tuple[float, float] | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """A finding of the paper, as a difference that can be measured here."""

    paper: str
    """In our words."""
    measure: str
    first: str
    second: str
    """Arms, or `SHIPPED`: the language model before anything of the study was trained."""
    expects: Literal["more", "same"] = "more"
    """Of the first, compared with the second."""


FINDINGS = (
    Finding(
        "CLIP features are learned better than VAE latents (prompt alignment)",
        "alignment",
        "clip_flow",
        "vae_flow",
    ),
    Finding(
        "The same, without all or nothing (retrieval)",
        "retrieval",
        "clip_flow",
        "vae_flow",
    ),
    Finding(
        "Flow matching gives better aligned images than regression",
        "alignment",
        "clip_flow",
        "clip_mse",
    ),
    Finding(
        "Flow matching gives images of better quality than regression",
        "clear",
        "clip_flow",
        "clip_mse",
    ),
    Finding(
        "Flow matching gives more diverse images than regression (in pixels)",
        "diversity_pixels",
        "clip_flow",
        "clip_mse",
    ),
    Finding(
        "The same, in features of the image encoder",
        "diversity_features",
        "clip_flow",
        "clip_mse",
    ),
    Finding(
        "Sequential training leaves understanding as it was (by construction: it is frozen)",
        "understanding",
        "clip_flow",
        SHIPPED,
        "same",
    ),
    Finding(
        "Joint training disturbs understanding, sequential training does not",
        "understanding",
        "clip_flow",
        "joint",
    ),
    Finding(
        "Sequential training gives all capacity to generation, which is the better for it (an "
        "argument of the paper, not a measurement)",
        "alignment",
        "clip_flow",
        "joint",
    ),
)


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95% interval of Student's t over seeds."""
    values = tuple(values)
    middle, freedom = mean(values), len(values) - 1
    if not freedom:
        return Spread(middle, None, values)
    variance = sum((value - middle) ** 2 for value in values) / freedom
    half = STUDENT[min(freedom, len(STUDENT)) - 1] * (variance / len(values)) ** 0.5
    return Spread(middle, (middle - half, middle + half), values)


def judge(difference: Spread, expects: str) -> tuple[str, str]:
    """A verdict ("agrees", "disagrees" or "undecided") and why, from the interval alone."""
    if difference.interval is None:
        return "undecided", "one seed has no interval"
    if not any(difference.values):
        return ("agrees" if expects == "same" else "undecided"), "the two are equal in every seed"
    low, high = difference.interval
    if low == high:
        return "undecided", "all seeds differ by the same amount, which gives no interval"
    if low <= 0 <= high:
        return "undecided", "the interval includes no difference"
    if expects == "same":
        return "disagrees", "the interval excludes no difference"
    if low > 0:
        return "agrees", "the interval lies above no difference"
    return "disagrees", "the interval lies below no difference"


def read(plan: Plan, runs: Sequence[Run], folder: Path) -> dict:
    """All that is known of a study, whole or not: what results.json holds.

    Raises:
        UserError: no run is done yet.
    """
    ready = done(runs, folder)
    if not ready or not (folder / SHIPPED / SCORES).is_file():
        raise UserError(f"no run in {folder} is done yet; there is nothing to report.")
    shipped = _scores(folder / SHIPPED)
    rows = [_row(run, folder / run.name) for run in runs if run.name in ready]
    seeds = " ".join(map(str, plan.seeds))
    return {
        "command": f'make study ARGS="--steps {plan.steps} --seeds {seeds}"',
        "plan": asdict(plan),
        "machine": {k: v for k, v in machine().items() if k != "load_before"},
        "versions": versions("torch", "transformers", "diffusers", "lightning"),
        "missing": [run.name for run in runs if run.name not in ready],
        SHIPPED: shipped,
        "runs": rows,
        "arms": {
            arm.name: {"says": arm.says, **_spreads(rows, arm.name)}
            for arm in ARMS
            if any(row["arm"] == arm.name for row in rows)
        },
        "findings": [compare(finding, rows, shipped) for finding in FINDINGS],
    }


def compare(finding: Finding, rows: Sequence[Mapping], shipped: Mapping) -> dict:
    """A finding with what was measured here: differences between runs of equal seeds."""
    first = _by_seed(rows, finding.first, finding.measure)
    second = (
        dict.fromkeys(first, shipped[finding.measure]["mean"])
        if finding.second == SHIPPED
        else _by_seed(rows, finding.second, finding.measure)
    )
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return asdict(finding) | {"verdict": "undecided", "why": "not measured", "difference": None}
    difference = spread([first[seed] - second[seed] for seed in seeds])
    verdict, why = judge(difference, finding.expects)
    return asdict(finding) | {"verdict": verdict, "why": why, "difference": asdict(difference)}


def write_runs(rows: Sequence[Mapping], path: Path) -> None:
    """The runs as a table for other programs, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "arm", "seed", "steps", "tflop", "cpu_seconds", *MEASURES])
        for row in rows:
            measured = [row["scores"][name]["mean"] for name in MEASURES]
            facts = [row[name] for name in ("name", "arm", "seed", "steps", "tflop", "cpu_seconds")]
            writer.writerow([*facts, *measured])


def _row(run: Run, folder: Path) -> dict:
    return {
        "name": run.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "steps": run.steps,
        "tflop": run.flops / 1e12,
        "cpu_seconds": cpu_seconds(folder, "fit"),
        "scores": _scores(folder),
        "curve": curve(folder, run.steps),
    }


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    """By measure: the "mean", and what it is the mean of."""
    found = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return {
        name: value if isinstance(value, dict) else {"mean": value} for name, value in found.items()
    }


def curve(folder: Path, steps: int) -> list[tuple[float, float]]:
    """(share of the run's compute, ShapeEval) by the log of its last attempt, which holds all."""
    points: dict[int, float] = {}
    for log in atomic_checkpoint.in_runs(folder, "metrics.csv"):
        for row in csv.DictReader(log.open()):
            if row.get("shape_eval/mean"):
                points[int(row["step"])] = float(row["shape_eval/mean"])
    return [(step / steps, points[step]) for step in sorted(points)]


def _by_seed(rows: Sequence[Mapping], arm: str, measure: str) -> dict[int, float]:
    return {row["seed"]: row["scores"][measure]["mean"] for row in rows if row["arm"] == arm}


def _spreads(rows: Sequence[Mapping], arm: str) -> dict[str, dict]:
    return {
        measure: asdict(spread(list(_by_seed(rows, arm, measure).values()))) for measure in MEASURES
    }
