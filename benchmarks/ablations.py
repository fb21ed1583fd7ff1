"""Changes of a recipe of the tiny preset, each with several seeds at equal steps or equal seconds.

    python benchmarks/ablations.py combinations --out benchmarks/results/ablation_combinations.json
    python benchmarks/ablations.py speedrun --seeds 0 --runs runs/again

A row is a set of flags of `triptych fit`; the first row is the baseline. Each run is trained by
`triptych fit` and scored by `triptych eval shapes`, in processes of one thread, `--jobs` at a time.
What is scored already is not made again. The last line is JSON: means and deviations over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reporting import machine, versions, write_result

from triptych.shapes_world.world import COLOURS

DIT = "--model.generation.init_args.dit.init_args"
DROPOUT = "--data.init_args.caption_dropout"
RATES = "--model.optimization"
RATE, BATCH, TRIAL = "throughput/samples_per_s", 64, 60
EDITS = "--data=EditsDataModule"


@dataclass(frozen=True)
class Table:
    """Rows that are compared, and how all of them are trained and scored."""

    stage: str
    steps: int | None
    """Of each run; None: as many as a run makes in `seconds`."""
    scores: tuple[str, ...]
    """Columns, names of `triptych eval shapes`."""
    rows: Mapping[str, Sequence[str]]
    seconds: int | None = None


def no_sources(ratio: float) -> tuple[str, ...]:
    """Flags of captions with a share of reconstructions among them."""
    share = ("--data.init_args.share=0", "--data.init_args.stories_ratio=0")
    return (EDITS, *share, f"--data.init_args.reconstructions={ratio}")


def words(*chosen: str) -> str:
    return f"{DROPOUT}.words=[{','.join(chosen)}]"


IMAGES = ("shape_eval/mean", "shape_eval_unseen/mean")
TABLES = {
    "combinations": Table(
        "stage2",
        700,
        IMAGES,
        {
            "as shipped": (),
            "colours left out of 1 in 5 places": (f"{DROPOUT}.probability=0.2", words(*COLOURS)),
            "colours and sizes left out of 1 in 5": (
                *(f"{DROPOUT}.probability=0.2", words(*COLOURS, "small", "large")),
            ),
            "8 register queries": ("--model.generation.init_args.num_registers=8",),
            "a fifth are reconstructions": no_sources(0.2),
        },
    ),
    "reconstruct": Table(
        "stage2",
        700,
        (*IMAGES, "edits/mean"),
        {
            "captions": no_sources(0),
            "a tenth are reconstructions": no_sources(0.1),
            "a quarter are reconstructions": no_sources(0.25),
        },
    ),
    "source": Table(
        "edits",
        700,
        ("edits/mean", "edits/kept", *IMAGES),
        {source: (f"{DIT}.source={source}",) for source in ("channels", "tokens", "none")},
    ),
    "speedrun": Table(
        "stage2",
        None,
        ("shape_eval/mean",),
        {
            "AdamW, velocities": (
                *(f"{RATES}.optimizer=null", f"{RATES}.lr=3e-3", f"{DIT}.prediction=velocity"),
            ),
            "Muon": (f"{RATES}.lr=8e-3", f"{DIT}.prediction=velocity"),
            "Muon, features": (),
            "Muon, features, one noise": ("--model.generation.init_args.flow.num_noise_samples=1",),
        },
        seconds=600,
    ),
}


def main() -> None:
    """Train and score what is left of a table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of each run in place of the table's")
    parser.add_argument("--captions", type=int, default=300, help="number of captions of a score")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    table = TABLES[parsed.table]
    runs = [(row, seed) for seed in parsed.seeds for row in table.rows]
    with ThreadPoolExecutor(parsed.jobs) as pool:
        tasks = [pool.submit(scores_of, parsed, table, row, seed) for row, seed in runs]
        found = dict(zip(runs, (task.result() for task in tasks), strict=True))
    figures = {
        row: {
            name: summary([found[row, seed][name] for seed in parsed.seeds])
            for name in (*table.scores, "steps", "seconds")
        }
        for row in table.rows
    }
    print_table(table, figures)
    facts = {"machine": machine(), "versions": versions("triptych", "torch"), "seeds": parsed.seeds}
    write_result(parsed.out, figures, **facts)


def scores_of(parsed: argparse.Namespace, table: Table, row: str, seed: int) -> dict[str, float]:
    """Scores, steps and seconds of a run, which is made unless it was."""
    place = f"{parsed.table}-{[*table.rows].index(row)}-{seed}"
    folder = (parsed.runs / place).absolute()
    record = folder / "record.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        steps = parsed.steps or table.steps or steps_in(table, row, folder)
        began = time.monotonic()
        run_triptych(folder, fit_arguments(table, row, seed, steps, folder))
        seconds = time.monotonic() - began
        run = max(folder.glob("version_*/weights.safetensors")).parent
        report = folder / "scores.json"
        evaluation = ("--num-captions", str(parsed.captions), "--out", str(report))
        run_triptych(folder, ["eval", "shapes", "--from", str(run), *evaluation])
        scores = flat(json.loads(report.read_text())["scores"])
        scores |= {"seconds": round(seconds), "steps": steps_of(run)}
        record.write_text(json.dumps(scores))
        print(f"{row}, seed {seed}: {scores[table.scores[0]]:.3f}", flush=True)
    return json.loads(record.read_text())


def fit_arguments(table: Table, row: str, seed: int, steps: int, folder: Path) -> list[str]:
    """Arguments of `triptych fit`; the logger's folder is `folder`."""
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder.parent}"]
    return [
        *("fit", "--preset", "tiny", "--stage", table.stage),
        *(f"--seed_everything={seed}", f"--trainer.max_steps={steps}", *table.rows[row]),
        *(*logger, f"--trainer.logger.name={folder.name}"),
    ]


def steps_in(table: Table, row: str, folder: Path) -> int:
    """Number of steps of a row in `table.seconds`, by the second half of a short run.

    The schedule of a run needs it before.
    """
    trial = folder / "trial"
    run_triptych(folder, fit_arguments(table, row, 0, TRIAL, trial))
    (metrics,) = trial.glob("version_*/metrics.csv")
    rows = list(csv.DictReader(metrics.read_text().splitlines()))
    rates = [float(each[RATE]) for each in rows if each.get(RATE)]
    return round(table.seconds * statistics.median(rates[len(rates) // 2 :]) / BATCH)


def run_triptych(folder: Path, arguments: Sequence[str]) -> None:
    """Run a command with one thread, its output to log.txt."""
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-P", "-m", "triptych", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )


def steps_of(run: Path) -> int:
    """Number of training steps of a run, by its metrics."""
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return 1 + max(int(line.split(",")[column]) for line in lines[1:])


def flat(scores: Mapping[str, object], start: str = "") -> dict[str, float]:
    """Nested scores by names with slashes."""
    found: dict[str, float] = {}
    for name, value in scores.items():
        key = f"{start}{name}"
        found |= flat(value, f"{key}/") if isinstance(value, Mapping) else {key: value}
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "std": round(deviation, 4)}


def print_table(table: Table, figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print a Markdown table."""
    names = (*table.scores, "steps", "seconds")
    print("| " + " | ".join(["", *names]) + " |")
    print("|---" * (len(names) + 1) + "|")
    for row, values in figures.items():
        cells = [f"{values[name]['mean']:.3f} ± {values[name]['std']:.3f}" for name in table.scores]
        cells += [f"{values[name]['mean']:.0f}" for name in ("steps", "seconds")]
        print("| " + " | ".join([row, *cells]) + " |")


if __name__ == "__main__":
    main()
