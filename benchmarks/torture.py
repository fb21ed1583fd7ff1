"""Kills and resumes training runs; the results must equal those of an uninterrupted run.

    make torture N=100 SEED=1

Every run is a short stage 2 of a very small model through the real command line, in a process of
its own. It is killed (SIGKILL) in a step, in a save, in a rename, in a validation, in its log,
while folders are made, while weights are exported or at any time, then started again with
`--ckpt_path=auto`; every fourth is killed once more. At the end weights, optimizer, schedule,
average of the weights, loss log, the samples of every step and the exported files are compared with
those of a run that nobody touched: bit for bit. No temporary file may be left.

The processes are forked from one that has imported everything; so a run takes seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: forks, and equal sums
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml
from lightning import Callback
from small_stage2 import SMALL_MODEL

import triptych.callbacks
from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints import weight_files as files
from triptych.cli.main import main as triptych_main
from triptych.shapes_world.shards import ensure_shapes
from triptych.utils.atomic_write import PARTIAL

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("time", "step", "save", "rename", "validation", "log", "folder", "export")
STEPS, EVERY, VALIDATE = 8, 2, 4


class Fate:
    """Counts the moments of a run by place, and ends the process in one of them."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.place, self.moment = "", 0

    def moment_of(self, place: str) -> bool:
        """Whether it is the last moment of this process; counts it."""
        self.seen[place] += 1
        return place == self.place and self.seen[place] == self.moment

    def pass_by(self, place: str) -> None:
        """A moment in which the process may end."""
        if self.moment_of(place):
            die()


FATE = Fate()


def die() -> None:
    """As `kill -9` from outside: nothing is cleaned up, no buffer is written."""
    os.kill(os.getpid(), signal.SIGKILL)


class Witness(Callback):
    """Writes down the samples of every step, and passes by the moments of a step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with (Path(trainer.log_dir) / "samples.txt").open("a") as file:
            file.write(f"{trainer.global_step} {batch.sample_ids.tolist()} {batch.keys}\n")
        FATE.pass_by("step")

    def on_before_backward(self, *_):
        FATE.pass_by("step")

    def on_before_optimizer_step(self, *_):
        FATE.pass_by("step")

    def on_before_zero_grad(self, *_):
        FATE.pass_by("step")

    def on_train_batch_end(self, *_):
        FATE.pass_by("step")

    def on_validation_start(self, *_):
        FATE.pass_by("validation")

    def on_validation_batch_end(self, *_):
        FATE.pass_by("validation")

    def on_validation_end(self, *_):
        FATE.pass_by("validation")


def watch_the_disk() -> None:
    """Let saves, renames, new folders, rows of the log and exports be moments too.

    A write is cut in its middle; what is one step for the disk has a moment before and one after.
    """
    from lightning.fabric.loggers.csv_logs import _ExperimentWriter

    write, write_tensors = atomic_checkpoint.HashingFile.write, files.write_tensors

    def cut(self, data):
        if FATE.moment_of("save"):
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            die()
        return write(self, data)

    def cut_export(file, tensors, metadata):
        if FATE.moment_of("export"):
            whole = io.BytesIO()
            write_tensors(whole, tensors, metadata)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            die()
        write_tensors(file, tensors, metadata)
        FATE.pass_by("export")

    def around(owner, name, place):
        function = getattr(owner, name)

        def watched(*arguments, **options):
            FATE.pass_by(place)
            result = function(*arguments, **options)
            FATE.pass_by(place)
            return result

        setattr(owner, name, watched)

    atomic_checkpoint.HashingFile.write, files.write_tensors = cut, cut_export
    around(os, "fsync", "rename")
    around(os, "replace", "rename")
    around(os, "symlink", "rename")
    around(os, "mkdir", "folder")
    around(_ExperimentWriter, "save", "log")
    around(triptych.callbacks.ExportWeights, "on_fit_end", "export")


def settings(folder: Path) -> Path:
    """The configuration of the small run, on top of stage 2 of the tiny preset."""
    shapes = ensure_shapes(folder / "shapes", train=64, evaluation=8, unseen=8, instruct=8)
    callbacks = ["lightning.pytorch.callbacks.LearningRateMonitor", "torture.Witness"]
    callbacks += ["triptych.callbacks.EMA"]
    config = {
        "model": SMALL_MODEL,
        "data": {
            "init_args": {
                "shards": str(shapes / "train"),
                "val_shards": str(shapes / "eval"),
                "batch_size": 2,
                "num_val_samples": 4,
            }
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "val_check_interval": VALIDATE,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": name} for name in callbacks]
            + [
                {
                    "class_path": "triptych.callbacks.Checkpoint",
                    "init_args": {"every_n_train_steps": EVERY},
                },
                {"class_path": "triptych.callbacks.ExportWeights"},
            ],
        },
    }
    path = folder / "torture.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(config: Path, runs: Path | None, name: str = "fit") -> list[str]:
    """The arguments of a run that leaves everything under `runs`."""
    names = (
        "base.yaml",
        "presets/tiny.yaml",
        "stages/stage2.yaml",
        "recipes/tiny/stage2.yaml",
        "data/folder.yaml",
    )
    files = [ROOT / "conf" / each for each in names]
    words = [word for file in (*files, config) for word in ("--config", str(file))]
    if runs is None:
        return [
            name,
            *words,
            "--trainer.logger=false",
            f"--trainer.default_root_dir={config.parent}",
        ]
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={runs}"]
    return [name, *words, *logger, "--trainer.logger.name=run", "--ckpt_path=auto"]


def start(config: Path, runs: Path, place: str = "", moment: int = 0) -> int:
    """Fork a process that runs, and maybe ends itself; returns its id."""
    runs.mkdir(parents=True, exist_ok=True)
    if pid := os.fork():
        return pid

    def run() -> None:
        FATE.seen.clear()
        FATE.place, FATE.moment = place, moment
        write_output_to(runs)
        triptych_main(command(config, runs))
        (runs / "moments.json").write_text(json.dumps(FATE.seen))

    end_after(run)


def write_output_to(runs: Path) -> None:
    """Let this process write all its output to a file of the run."""
    with (runs / "out.txt").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def end_after(run: Callable[[], None]) -> NoReturn:
    """Run in this forked process, and end it with the status of a command."""
    status = 1
    try:
        run()
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(pid: int, delay: float | None = None) -> bool:
    """Wait for a process, and kill it after `delay` seconds; returns whether it was killed."""
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)  # its id is its own until it is waited for
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status):
        raise RuntimeError("a run failed instead of being killed")
    return False


def tortured(runs: Path, place: str, often: int, draw: random.Random) -> int:
    """A run that is killed `often` times and then left alone; returns the number of kills."""
    config, whole, kills = WHOLE.config, WHOLE.moments, 0
    while kills < often:
        if place == "time":
            killed = finish(start(config, runs), draw.uniform(0.05, WHOLE.seconds))
        else:
            # what is left of the run has fewer moments the second time
            moment = draw.randint(1, max(1, whole[place] // (1 + kills)))
            killed = finish(start(config, runs, place, moment))
        if not killed:
            return kills  # it was done before
        kills += 1
    finish(start(config, runs))
    return kills


def results(runs: Path) -> dict[str, object]:
    """All that must be equal, of a run that is done."""
    folders = sorted((runs / "run").glob("version_*"), key=lambda p: int(p.name.split("_")[1]))
    last = atomic_checkpoint.latest([runs / "run"])
    state = torch.load(last, weights_only=True)
    samples: dict[str, str] = {}
    for folder in folders:
        if (folder / "samples.txt").exists():
            for line in (folder / "samples.txt").read_text().splitlines():
                step, _, of_step = line.partition(" ")
                if samples.setdefault(step, of_step) != of_step:
                    samples[step] = f"{samples[step]}, and then {of_step}"
    return {
        "step": state["global_step"],
        "weights": flat(state["state_dict"]),
        "optimizer": flat(state["optimizer_states"]),
        "schedule": state["lr_schedulers"],
        "average": flat(state["callbacks"].get("EMA", {})),
        "log": (last.parent.parent / "metrics.csv").read_text(),
        "samples": samples,
        "exported": [
            (folder / f"{name}.safetensors").read_bytes()
            for folder in (last.parent.parent, runs / "run")
            for name in ("weights", "weights_ema")
        ],
        "left over": [path.name for path in runs.rglob(f"*{PARTIAL}*")],
    }


def flat(state: object, name: str = "") -> dict[str, object]:
    """A nested state by path, tensors as bytes: only what is equal to the bit compares equal."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    elif isinstance(state, torch.Tensor):
        return {name: (str(state.dtype), tuple(state.shape), state.numpy().tobytes())}
    else:
        return {name: state}
    return {k: v for key, value in items for k, v in flat(value, f"{name}/{key}").items()}


@dataclass
class Whole:
    """The run that nobody touched."""

    config: Path
    seconds: float
    moments: dict[str, int]
    results: dict[str, object]


WHOLE: Whole  # set once, before the processes are forked that compare with it


def leave_alone(folder: Path) -> Whole:
    """Make the run to compare with."""
    config = settings(folder)
    triptych_main(command(config, None, "validate"))  # imports what all runs need
    watch_the_disk()
    began = time.time()
    finish(start(config, folder / "whole"))
    seconds = time.time() - began
    moments = json.loads((folder / "whole" / "moments.json").read_text())
    return Whole(config, seconds, moments, results(folder / "whole"))


def compare(task: tuple[Path, int, int]) -> tuple[int, str, int, list[str]]:
    """Torture the run of that number; returns it, where and how often it was killed, and what
    differs in the end."""
    folder, number, seed = task
    place, often = PLACES[number % len(PLACES)], 2 if number % 4 == 3 else 1
    runs, draw, kills = folder / f"{number:04d}", random.Random(f"{seed} {number}"), 0
    while not kills:  # it may have been done before its moment came
        shutil.rmtree(runs, ignore_errors=True)
        kills = tortured(runs, place, often, draw)
    own = results(runs)
    different = [name for name, value in WHOLE.results.items() if own[name] != value]
    if not different:
        shutil.rmtree(runs)
    return number, place, kills, different


def main() -> None:
    global WHOLE
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="how many, each killed at least once")
    parser.add_argument("--jobs", type=int, default=cores, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parsed = parser.parse_args()
    if parsed.runs < 1 or parsed.jobs < 1:
        parser.error("--runs and --jobs must be 1 or more")
    started, folder = time.time(), Path(tempfile.mkdtemp(prefix="torture-"))
    WHOLE = leave_alone(folder)
    print(f"a run of {STEPS} steps has the moments {WHOLE.moments}", flush=True)

    identical, kills = 0, Counter()
    tasks = [(folder, number, parsed.seed) for number in range(parsed.runs)]
    with multiprocessing.get_context("fork").Pool(parsed.jobs) as pool:
        for number, place, often, different in pool.imap(compare, tasks):
            kills[place] += often
            identical += not different
            verdict = f"differs in {', '.join(different)}: {folder}" if different else "identical"
            print(f"run {number + 1}, killed in {place} ({often}): {verdict}", flush=True)
    if identical == parsed.runs:
        shutil.rmtree(folder)
    result = {"runs": parsed.runs, "identical": identical, "kills": dict(kills)}
    result["average_included"] = bool(WHOLE.results["average"])
    print(json.dumps({**result, "seconds": round(time.time() - started, 1)}))
    sys.exit(identical != parsed.runs)


if __name__ == "__main__":
    # the run's processes name the callback as torture.Witness: let that be this module
    sys.modules["torture"] = sys.modules["__main__"]
    main()
