"""Learning from rewards on the tiny preset, against the same arithmetic spent on stage 2.

    start      the shipped weights, sampled without guidance
    after      `triptych fit --stage rl` from them, rewarded by the exact checker
    control    stage 2 from the same weights, for as many FLOPs

Each is trained with every seed and scored on held-out captions ("eval") and on combinations of
which no image exists ("unseen"), without guidance. Two ways to choose the prompts: those of the
recipe, half of which are unseen combinations (evaluation captions held out), and `--prompts train`.
diversity_ratio is the mean distance between the features of two images of a prompt, after over
before; hacked is the log of a run whose reward pays for red pixels.

    python benchmarks/rewards.py --out benchmarks/results/rewards.json
    python benchmarks/rewards.py --quick

Runs are kept in `--runs` and not made again. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from reporting import machine, versions, write_result

from triptych.data_modules import Collator, ShapesPrompts, TaskDataset
from triptych.inference.loading import describe_stage
from triptych.interfaces import TEXT_TO_REWARD
from triptych.modules import UnifiedModule
from triptych.training.flop_counter import count_flops
from triptych.training.synthetic_batches import stage_batches
from triptych.utils.paths import conf_files, presets

STEPS, STEPS_PER_SET, PROMPTS, BATCH = 400, 4, 24, 64
"""Steps of a run, steps that learn from one set of images, prompts of a set, batch of stage 2."""
RED = "--model.reward=red_pixels.RedPixels"
RED_REWARD = '''"""A reward that is easily deceived."""

from triptych.interfaces import Reward


class RedPixels(Reward):
    name = "red_pixels"

    def __call__(self, images, samples):
        red, green, blue = images.float().unbind(1)
        return ((red > 150) & (green < 100) & (blue < 100)).float().mean((1, 2))
'''


def main() -> None:
    """Train and score what is left, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run by rewards")
    parser.add_argument("--captions", type=int, default=600, help="captions of a score")
    parser.add_argument("--prompts", choices=["recipe", "train"], default="recipe")
    parser.add_argument("--quick", action="store_true", help="one seed, 240 captions a score")
    parser.add_argument("--runs", type=Path, default=Path("runs/rewards"))
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds, parsed.captions = parsed.seeds[:1], min(parsed.captions, 240)
    parsed.runs = parsed.runs.absolute()
    parsed.runs.mkdir(parents=True, exist_ok=True)
    (parsed.runs / "red_pixels.py").write_text(RED_REWARD)
    rl, stage2 = flops_of_a_step()
    control_steps = round(parsed.steps * rl / stage2)
    start = scored(parsed, "start", None)
    after = [
        scored(parsed, f"rl-{parsed.prompts}-{s}", rl_arguments(parsed, s)) for s in parsed.seeds
    ]
    control = [
        scored(parsed, f"control-{s}", ["--stage", "stage2", *steps_and_seed(control_steps, s)])
        for s in parsed.seeds
    ]
    hacked = trained(parsed, "hacked", [*rl_arguments(parsed, parsed.seeds[0]), RED])
    figures = {
        "start": start,
        "after": means(after),
        "control": means(control),
        "diversity_ratio": round(
            statistics.mean(
                diversity(parsed, f"rl-{parsed.prompts}-{seed}") for seed in parsed.seeds
            ),
            3,
        ),
        "guidance": 1.0,
        "prompts": parsed.prompts,
        "control_steps": control_steps,
        "flops_ratio": round(rl / stage2, 2),
        "hacked": ends(hacked, ("train/reward", "train/diversity", "train/reference_distance")),
    }
    facts = {"machine": machine(), "versions": versions("triptych", "torch"), "seeds": parsed.seeds}
    write_result(parsed.out, figures, **facts)


def steps_and_seed(steps: int, seed: int) -> list[str]:
    return [
        f"--trainer.max_steps={steps}",
        f"--seed_everything={seed}",
        "--trainer.val_check_interval=1000000",
        "--model.weights.generation=asset:tiny/generation.safetensors",
    ]


def rl_arguments(parsed: argparse.Namespace, seed: int) -> list[str]:
    """Arguments of `triptych fit` for a run by rewards."""
    only = ["--data.datasets.unseen.weight=0"] if parsed.prompts == "train" else []
    return ["--stage", "rl", *steps_and_seed(parsed.steps, seed), *only]


def trained(parsed: argparse.Namespace, name: str, arguments: Sequence[str]) -> Path:
    """Folder of a run, which is made unless it was."""
    folder = parsed.runs / name
    if not (folder / "done").is_file():
        logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={parsed.runs}"]
        named = [*logger, f"--trainer.logger.name={name}"]
        triptych(parsed, name, ["fit", "--preset", "tiny", *arguments, *named])
        (folder / "done").touch()
    return max(folder.glob("version_*/weights.safetensors")).parent


def scored(
    parsed: argparse.Namespace, name: str, arguments: Sequence[str] | None
) -> dict[str, float]:
    """ShapeEval of a run on held-out captions and on unseen combinations, without guidance."""
    source = [] if arguments is None else ["--from", str(trained(parsed, name, arguments))]
    report = parsed.runs / f"{name}-{parsed.captions}.json"
    if not report.is_file():
        settings = ["--guidance-scale", "1", "--num-captions", str(parsed.captions)]
        triptych(parsed, name, ["eval", "shapes", *source, *settings, "--out", str(report)])
    scores = json.loads(report.read_text())["scores"]
    found = {"eval": scores["shape_eval"]["mean"], "unseen": scores["shape_eval_unseen"]["mean"]}
    found["question_answering"] = scores["question_answering"]["mean"]
    print(f"{name}: {json.dumps(found)}", flush=True)
    return found


def triptych(parsed: argparse.Namespace, name: str, arguments: Sequence[str]) -> None:
    """Run a command in the folder of the runs, its output to NAME.log."""
    with (parsed.runs / f"{name}.log").open("a") as log:
        subprocess.run(
            [sys.executable, "-P", "-m", "triptych", *arguments],
            cwd=parsed.runs,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over seeds, and deviations."""
    found: dict[str, float] = {}
    for name in scores[0]:
        values = [each[name] for each in scores]
        found[name] = round(statistics.mean(values), 4)
        found[f"{name}_std"] = round(statistics.stdev(values) if len(values) > 1 else 0.0, 4)
    return found


def logged(run: Path, column: str) -> list[float]:
    """Values of a column of metrics.csv."""
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [float(row[column]) for row in rows if row.get(column)]


def ends(run: Path, columns: Sequence[str]) -> dict[str, list[float]]:
    """First and last logged value of columns."""
    return {name: [round(logged(run, name)[at], 4) for at in (0, -1)] for name in columns}


def diversity(parsed: argparse.Namespace, name: str) -> float:
    """Diversity of the last quarter of a run over that of its beginning."""
    values = logged(max((parsed.runs / name).glob("version_*")), "train/diversity")
    last = values[-max(1, len(values) // 4) :]
    return statistics.mean(last) / values[0]


def flops_of_a_step() -> tuple[float, float]:
    """Mean FLOPs of a step by rewards, drawing and decoding included, and of stage 2.

    torch's counter does not count a pass without gradients of what has some. So weights require
    none, and a backward pass counts twice its forward pass.
    """
    model = stage_model("rl").requires_grad_(False).train()
    dataset = TaskDataset(ShapesPrompts(number=2).open(), TEXT_TO_REWARD)
    batch = Collator([dataset], model.preprocessing())(0, [(0, 0), (0, 1)], [0, 1])
    first = count_flops(lambda: model.step(batch))  # draws and scores
    batch.repetition = 1
    later = count_flops(lambda: model.step(batch))  # three velocities, of which one learns
    rl = (first + (STEPS_PER_SET - 1) * later + STEPS_PER_SET * 2 * later / 3) / STEPS_PER_SET
    model = stage_model("stage2")
    features = torch.zeros(8, *model.generation.feature_shape)
    (batch,) = stage_batches(model, 8, features=features, pixels=False).values()
    return rl * PROMPTS / 2, count_flops(lambda: model.step(batch)[0].backward()) * BATCH / 8


def stage_model(stage: str) -> UnifiedModule:
    """The model of a stage of the tiny preset, with its weights."""
    files = [presets()["tiny"], conf_files("stages/*.yaml")[stage]]
    files += [conf_files(f"{kind}/tiny/{stage}.yaml")[stage] for kind in ("recipes", "data")]
    model = describe_stage(files)
    model.configure_model()
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
