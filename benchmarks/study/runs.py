"""Trains and scores the runs of a plan, each by `triptych fit` in a process of its own.

A run that is done (`measures.json` is in its folder) is not made again; one that was stopped goes
on from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml

from study.plan import CURVE_IMAGES, ROOT, Plan, Run
from triptych.checkpoints import atomic_checkpoint
from triptych.utils.atomic_write import write_text
from triptych.utils.errors import UserError

SCORES = "measures.json"
SHIPPED = "shipped"  # the weights that come with the preset, scored like a run
PYTHON = (sys.executable,)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def work(plan: Plan, runs: Sequence[Run], folder: Path, world: Path, jobs: int) -> None:
    """Do what is left of a plan under `folder`, `jobs` processes of one thread at a time.

    Args:
        world: the shapes world's shards: world/train and world/eval.

    Raises:
        UserError: the folder holds another plan's runs, another process works there, or runs
            failed; all others are done then.
    """
    folder, world = folder.absolute(), world.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock:
        keep_to(plan, folder)
        workers = _Workers(lock)
        pool = ThreadPoolExecutor(jobs)
        tasks = [(SHIPPED, pool.submit(workers.score, plan, "tiny", folder / SHIPPED))]
        tasks += [
            (run.name, pool.submit(workers.make, plan, run, folder / run.name, world))
            for run in runs
        ]
        try:
            failed = [name for name, task in tasks if not task.result()]
        finally:  # also when someone ends this process: nothing goes on alone
            pool.shutdown(wait=False, cancel_futures=True)
            workers.end()
            pool.shutdown()
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed, see log.txt in {folder}/{failed[0]}; all that is done "
            "stays, and the same command goes on."
        )


def done(runs: Sequence[Run], folder: Path) -> list[str]:
    """The names of those that are trained and scored."""
    return [run.name for run in runs if (folder / run.name / SCORES).is_file()]


def keep_to(plan: Plan, folder: Path) -> None:
    """Write the plan down, or find that it is the one that the runs here were begun with.

    Raises:
        UserError: it is another one.
    """
    path, own = folder / "plan.json", json.dumps(asdict(plan) | {"seeds": None})
    # seeds may be added: the runs of the others stay what they are
    if not path.is_file():
        write_text(path, own)
    elif path.read_text(encoding="utf-8") != own:
        raise UserError(
            f"the runs in {folder} were begun with other settings ({path.read_text()}); give the "
            "same --steps, or another folder with --runs."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the folder; a training process holds it too, even if this one is killed.

    Raises:
        UserError: another process works there.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"a study, or a training that one began, is at work in {folder}; wait for it or "
                "end it."
            ) from error
        yield file.fileno()


class _Workers:
    """Processes that train and score."""

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.running: set[subprocess.Popen] = set()
        self.ended = False

    def make(self, plan: Plan, run: Run, folder: Path, world: Path) -> bool:
        """Train and score a run, what of it is left; returns whether all went well."""
        if (folder / SCORES).is_file():
            return True
        if not any(entry["what"] == "fit" and entry.get("status") == 0 for entry in noted(folder)):
            arguments = fit_arguments(plan, run, folder, world)
            if not self._process(["-m", "triptych", *arguments], folder, "fit"):
                return False
        return self.score(plan, newest(folder), folder)

    def score(self, plan: Plan, source: str | Path, folder: Path) -> bool:
        """Score a model, unless that is done; returns whether all went well."""
        if (folder / SCORES).is_file():
            return True
        words = [str(source), str(folder), str(plan.images), str(plan.prompts), str(plan.each)]
        return self._process(["-m", "study.scores", *words], folder, "score")

    def end(self) -> None:
        """Tell all processes to end; a training saves its state first."""
        self.ended = True
        for process in list(self.running):
            process.terminate()

    def _process(self, words: Sequence[str], folder: Path, what: str) -> bool:
        """Run Python, its output to log.txt, its cost to attempts.jsonl."""
        if self.ended:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{folder.name}: {what}", flush=True)
        note(folder, {"what": what})
        began = time.time()
        with (folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                [*PYTHON, *words],
                cwd=ROOT,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT / "benchmarks")},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],
            )
            self.running.add(process)
            if self.ended:  # while it was started
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.discard(process)
        cost = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "seconds": time.time() - began}
        note(folder, {"what": what, "status": process.returncode, **cost})
        print(f"{folder.name}: {what} ended with {process.returncode}", flush=True)
        return process.returncode == 0


def fit_arguments(plan: Plan, run: Run, folder: Path, world: Path) -> list[str]:
    """The `triptych fit` command line of a run; its settings are written beside its logs."""
    settings = folder / "study.yaml"
    write_text(settings, yaml.safe_dump(_settings(plan, run, world)))
    configs = ["base", "presets/tiny", f"stages/{run.arm.stage}", f"recipes/tiny/{run.arm.stage}"]
    configs = [f"conf/{name}.yaml" for name in (*configs, "data/folder")] + [str(settings)]
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder.parent}"]
    return [
        "fit",
        *(word for config in configs for word in ("--config", config)),
        *run.arm.model_flags(),
        *logger,
        f"--trainer.logger.name={folder.name}",
        "--ckpt_path=auto",
    ]


def _settings(plan: Plan, run: Run, world: Path) -> dict:
    """Settings that all arms share."""
    every = plan.every(run)
    evaluator = {
        "class_path": "triptych.evaluation.ShapeEval",
        "init_args": {"num_images": min(CURVE_IMAGES, plan.images)},
    }
    callbacks = {
        "triptych.callbacks.NonFiniteGuard": {},
        "triptych.callbacks.Checkpoint": {"every_n_train_steps": every},
        "triptych.callbacks.ExportWeights": {},
        "triptych.callbacks.Evaluate": {"evaluator": evaluator, "every_n_steps": every},
    }
    shards = {
        "shards": str(world / "train"),
        "val_shards": str(world / "eval"),
    }
    if run.arm.stage == "joint":
        shards["text_only_ratio"] = 0.4  # as in conf/data/tiny/joint.yaml
    return {
        "seed_everything": run.seed,
        "data": {"init_args": {**shards, "length_bucket_batches": 1}},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": run.steps,
            "val_check_interval": every,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": name, "init_args": options} for name, options in callbacks.items()
            ],
        },
    }


def newest(folder: Path) -> Path:
    """The folder of the run's last attempt that was finished."""
    return atomic_checkpoint.in_runs(folder, "weights.safetensors")[-1].parent


def note(folder: Path, entry: dict) -> None:
    """Add a line to what is known of a run's attempts."""
    with (folder / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def noted(folder: Path) -> list[dict]:
    """Entries of `note`: one at the start of an attempt, one with its status at its end."""
    path = folder / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def cpu_seconds(folder: Path, what: str) -> float | None:
    """Of all attempts together; None if one of them was cut off before it could be measured."""
    entries = [entry for entry in noted(folder) if entry["what"] == what]
    ended = [entry for entry in entries if "status" in entry]
    if 2 * len(ended) != len(entries):
        return None
    return sum(entry["cpu_seconds"] for entry in ended)
