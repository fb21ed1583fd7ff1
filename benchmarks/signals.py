"""Ends runs of several ranks in every phase, by signals and by the death of a rank.

    python benchmarks/signals.py --ranks 2 4 8 --times 20

Each run is a short stage 2 of a very small model through the real command line, on 2, 4 or 8 gloo
ranks that Lightning launches, or that are started like torchrun's. In one phase something happens
to it: SIGTERM once or twice, to the first rank, to the last, or as `timeout` sends it; Ctrl-C; a
rank is killed (SIGKILL), or raises, or its disk is full. Then all processes must be gone within the
limit, with the right exit status, one sentence of one rank and no traceback but that of a mistake;
and every run of a sample must go on with `--ckpt_path=auto` to the weights of a run that nobody
touched, bit for bit.

The ranks are forked from a process that has imported everything, so a run takes seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: forks, and equal sums

import torch
import torture
import yaml
from lightning import Callback
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

from triptych.callbacks import export_weights
from triptych.checkpoints import atomic_checkpoint
from triptych.cli.lightning import TriptychCLI
from triptych.cli.main import main as triptych_main
from triptych.utils.errors import UserError

STARTING = ("parse", "rendezvous", "data", "setup", "sanity")
TRAINING = ("forward", "backward", "optimizer", "stepped", "validation", "save", "background")
CLOSING = ("export", "teardown")
PLACES = (*STARTING, *TRAINING, *CLOSING)
EVENTS = ("term", "term-twice", "timeout", "term-last", "int", "usr1")
FAILURES = ("kill-first", "kill-last", "refused", "mistake", "disk")
STRATEGIES = {
    "ddp": {
        "class_path": "triptych.training.strategies.LeanDDPStrategy",
        "init_args": {"process_group_backend": "gloo"},
    },
    "fsdp2": {"class_path": "triptych.training.strategies.ShardedStrategy"},
    "sharded": {
        "class_path": "triptych.training.strategies.ShardedStrategy",
        "init_args": {"save_sharded": True},
    },
}


@dataclass(frozen=True)
class SignalCase:
    """One run and what happens to it."""

    ranks: int
    strategy: str
    launcher: str
    place: str
    event: str
    time: int = 0


class Fate:
    """The event that ends a run; every rank passes by the places of its phases."""

    case: SignalCase | None = None
    first: int = 0
    """Process id of the first rank."""
    left: int = 1
    """Passages of the place until it happens."""
    rank: int = 0
    struck: Path = Path()
    """Appears when it happens."""

    def pass_by(self, place: str) -> None:
        case = self.case
        if case is None or place != case.place.replace("background", "save"):
            return
        last = case.event in ("term-last", "kill-last", "refused", "mistake")
        last |= (case.event, case.strategy) == ("disk", "sharded")  # else the first one writes
        alone = place in ("parse", "data", "save", "export")  # some of these the first rank does
        if self.rank != (case.ranks - 1 if last and not alone else 0):
            return
        self.left -= 1
        if self.left == 0:
            self.strike(case.event)

    def strike(self, event: str) -> None:
        """Let the event happen, to this process unless it is one of the first rank's."""
        self.struck.touch()
        if event == "refused":
            raise UserError("the benchmark refuses this run; let it.")
        if event == "mistake":
            raise ZeroDivisionError("the benchmark's mistake")
        if event == "disk":  # files of this process grow no further than this
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            return
        if event.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        number = {"int": signal.SIGINT, "usr1": signal.SIGUSR1}.get(event, signal.SIGTERM)
        if event == "int":
            os.killpg(0, number)  # as a terminal does
            return
        os.kill(self.first, number) if event != "term-last" else os.kill(os.getpid(), number)
        if event == "term-twice":
            threading.Timer(0.05, os.kill, (self.first, number)).start()
        if event == "timeout":
            os.killpg(0, number)


FATE = Fate()


class Passes(Callback):
    """Passes by the places that callbacks see."""

    def setup(self, *_, **__):
        FATE.pass_by("setup")

    def on_sanity_check_start(self, *_):
        FATE.pass_by("sanity")

    def on_train_batch_start(self, *_):
        FATE.pass_by("forward")

    def on_before_backward(self, *_):
        FATE.pass_by("backward")

    def on_before_optimizer_step(self, *_):
        FATE.pass_by("optimizer")

    def on_train_batch_end(self, *_):
        FATE.pass_by("stepped")

    def on_validation_batch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            FATE.pass_by("validation")

    def teardown(self, *_, **__):
        FATE.pass_by("teardown")


def passing(place: str, function: Callable) -> Callable:
    """The function, but for a place that it passes by first."""

    def passes(*arguments, **options):
        FATE.pass_by(place)
        return function(*arguments, **options)

    return passes


def watch() -> None:
    """Let what no callback sees be places too."""
    from lightning.pytorch.trainer.connectors.data_connector import _DataConnector

    cli, group = TriptychCLI, torch.distributed
    cli.before_instantiate_classes = passing("parse", cli.before_instantiate_classes)
    group.init_process_group = passing("rendezvous", group.init_process_group)
    _DataConnector.prepare_data = passing("data", _DataConnector.prepare_data)
    atomic_checkpoint.HashingFile.write = passing("save", atomic_checkpoint.HashingFile.write)
    atomic_checkpoint.commit_folder = passing("save", atomic_checkpoint.commit_folder)
    export_weights.save_weights = passing("export", export_weights.save_weights)
    subprocess_script.subprocess = SimpleNamespace(Popen=Forked)


class Forked:
    """A rank that Lightning launches: forked, where it would start Python anew."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            run_rank(env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_rank(env: dict[str, str]) -> None:
    """Be a rank in this process, forked for it, to the end."""

    def run() -> None:
        os.environ.clear()
        os.environ.update(env)
        FATE.rank = int(env.get("RANK", env.get("LOCAL_RANK", 0)))
        rank_zero_only.rank = FATE.rank  # Lightning reads it when it is imported
        triptych_main(ARGUMENTS)

    torture.end_after(run)


ARGUMENTS: list[str] = []


def start(
    case: SignalCase, runs: Path, config: Path, fated: bool, draw: random.Random
) -> list[int]:
    """Fork the process or processes of a run, in a group of their own; returns their ids."""
    runs.mkdir(parents=True, exist_ok=True)
    ARGUMENTS[:] = [
        *torture.command(config, runs),
        f"--trainer.devices={case.ranks}",
        f"--trainer.strategy={json.dumps(STRATEGIES[case.strategy])}",
    ]
    env = {**os.environ}
    started = [env]
    if case.launcher == "torchrun":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        env |= {"WORLD_SIZE": str(case.ranks), "LOCAL_WORLD_SIZE": str(case.ranks)}
        env |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "signals"}
        started = [{**env, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(case.ranks)]
    FATE.case = case if fated else None
    FATE.struck = runs / "struck"
    FATE.left = (
        draw.randint(1, {"validation": 2}.get(case.place, 3)) if case.place in TRAINING else 1
    )
    pids: list[int] = []
    for own in started:
        if pid := os.fork():
            pids.append(pid)
            os.setpgid(pid, pids[0])
            continue
        os.setpgid(0, pids[0] if pids else 0)
        FATE.first = pids[0] if pids else os.getpid()
        torture.write_output_to(runs)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_rank(own)
    return pids


def alive(group: int) -> int:
    """Processes of a group that still run."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += state != "Z" and int(its_group) == group
    return found


def finish(pids: list[int], runs: Path, limit: float) -> tuple[dict[int, int], int, float]:
    """Exit statuses by number of the process, how many of the group outlived the limit, and the
    seconds from the event, or else from the start, to the end."""
    began, statuses, agent_acted = time.monotonic(), {}, False
    struck = False
    while time.monotonic() - began < (limit if struck else 600):
        if not struck and (runs / "struck").exists():
            began, struck = time.monotonic(), True
        for number, pid in enumerate(pids):
            if number not in statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[number] = os.waitstatus_to_exitcode(status)
        if not agent_acted and any(statuses.values()):  # as torchrun does
            agent_acted = True
            for number in set(range(len(pids))) - statuses.keys():
                os.kill(pids[number], signal.SIGTERM)
        if len(statuses) == len(pids) and not alive(pids[0]):
            break
        time.sleep(0.05)
    left = alive(pids[0])
    if left:
        os.killpg(pids[0], signal.SIGKILL)
    for number, pid in enumerate(pids):
        if number not in statuses:
            statuses[number] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return statuses, left, time.monotonic() - began


def complaints(case: SignalCase, statuses: dict[int, int], left: int, said: str) -> list[str]:
    """Faults of a run that ended."""
    wrong = []
    if left:
        wrong.append(f"{left} processes outlived the limit")
    expected = {"int": {130}, "usr1": {138}}.get(case.event, {143})
    if case.event in FAILURES:
        expected = {1, -9} if case.event.startswith("kill") else {1}
    if case.place in CLOSING:
        expected = expected | {0}  # what is left of the run is done
    if case.launcher == "torchrun":  # it ends the others by SIGTERM
        expected = expected | {143}
    if bad := sorted(set(statuses.values()) - expected):
        wrong.append(f"exit status {bad}, not {sorted(expected)}")
    lines = [line for line in said.splitlines() if line.startswith("triptych: ")]
    if case.event == "mistake":
        if "ZeroDivisionError: the benchmark's mistake" not in said:
            wrong.append("the traceback of the mistake is not shown")
    elif "Traceback" in said:
        wrong.append("a traceback")
    most = 2 if case.event in ("int", "mistake") else 1
    silent = case.place in CLOSING or (
        case.place == "parse" and case.event.startswith("kill")  # there is no other rank yet
    )
    silent |= case.event == "mistake"  # a traceback says it
    if case.launcher == "torchrun" and case.event.startswith("kill"):
        silent, most = True, case.ranks  # torchrun says it; here the first rank holds the store
    if len(lines) > most or (not lines and not silent):
        wrong.append(f"{len(lines)} sentences")
    return wrong


def attempt(task: tuple[SignalCase, int, bool, float, Path]) -> dict[str, object]:
    """Run a case; says what was wrong, how long its end took, and whether it went on exactly."""
    case, seed, resumed, limit, folder = task
    draw = random.Random(f"{seed} {case}")
    name = "-".join(str(each) for each in (*vars(case).values(), os.getpid()))
    runs = folder / name
    config = folder / ("background.yaml" if case.place == "background" else "signals.yaml")
    statuses, left, seconds = finish(start(case, runs, config, True, draw), runs, limit)
    said = (runs / "out.txt").read_text(errors="replace")
    wrong = complaints(case, statuses, left, said)
    identical = None
    if resumed:
        (runs / "struck").unlink(missing_ok=True)
        again, left, _ = finish(start(case, runs, config, False, draw), runs, limit)
        identical = (
            not left
            and set(again.values()) == {0}
            and weights(runs) == weights(folder / f"whole-{case.ranks}-{case.strategy}")
        )
        if not identical:
            wrong.append(f"resumed, it ends with other weights or status {again}")
    if not wrong:
        shutil.rmtree(runs)
    return {"case": case, "wrong": wrong, "seconds": seconds, "identical": identical, "runs": runs}


def weights(runs: Path) -> dict[str, object] | None:
    """Trained tensors and optimizer of a run's last checkpoint, as bytes."""
    last = atomic_checkpoint.latest([runs / "run"])
    if last is None:
        return None
    if last.is_dir():
        return torture.flat(load_file(last.parent.parent / "weights.safetensors"))
    state = torch.load(last, weights_only=True)
    return torture.flat([state["state_dict"], state["optimizer_states"]])


def prepare(folder: Path) -> None:
    """Write the configurations, and import all that a run needs."""
    config = yaml.safe_load(torture.settings(folder).read_text())
    trainer = config["trainer"]
    trainer["num_sanity_val_steps"] = 1
    # validations of two batches: one to end in the middle of
    config["data"]["init_args"]["num_val_samples"] = 4
    trainer["callbacks"] = [
        {"class_path": "signals.Passes"},
        *(each for each in trainer["callbacks"] if "torture" not in each["class_path"]),
    ]
    (folder / "signals.yaml").write_text(yaml.safe_dump(config))
    triptych_main(torture.command(folder / "signals.yaml", None, "validate"))
    for callback in trainer["callbacks"]:
        if callback["class_path"].endswith("Checkpoint"):
            callback["init_args"]["save_async"] = True
    (folder / "background.yaml").write_text(yaml.safe_dump(config))


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES)
    parser.add_argument("--events", nargs="+", choices=EVENTS + FAILURES, default=EVENTS + FAILURES)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["ddp", "fsdp2"])
    parser.add_argument(
        "--launchers", nargs="+", choices=["lightning", "torchrun"], default=["lightning"]
    )
    parser.add_argument("--times", type=int, default=20, help="of each combination")
    parser.add_argument("--only", type=int, help="this many of them, drawn")
    parser.add_argument("--resume", type=int, default=5, help="resume every so manieth; 0: none")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds from the event to the end"
    )
    parser.add_argument("--jobs", type=int, default=cores, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="signals-"))
    prepare(folder)
    watch()
    cases = [
        SignalCase(*each)
        for each in product(
            parsed.ranks,
            parsed.strategies,
            parsed.launchers,
            parsed.places,
            parsed.events,
            range(parsed.times),
        )
    ]
    # torch's writer answers what is raised inside of it with an error of its own
    raised = {
        (place, event) for place in ("save", "background") for event in ("refused", "mistake")
    }
    cases = [case for case in cases if (case.place, case.event) not in raised]
    random.Random(parsed.seed).shuffle(cases)
    cases = cases[: parsed.only]
    sampled = [parsed.resume > 0 and n % parsed.resume == 0 for n in range(len(cases))]
    for ranks, strategy in {
        (c.ranks, c.strategy) for c, r in zip(cases, sampled, strict=True) if r
    }:
        whole = SignalCase(ranks, strategy, "lightning", "", "")
        runs = folder / f"whole-{ranks}-{strategy}"
        statuses, _, seconds = finish(
            start(whole, runs, folder / "signals.yaml", False, random), runs, 600
        )
        if statuses != {0: 0}:
            sys.exit(f"a run that nobody touches fails: {(runs / 'out.txt').read_text()[-3000:]}")
        print(f"{ranks} ranks, {strategy}, left alone: {seconds:.1f} s", flush=True)
    tasks = [
        (case, parsed.seed, resumed, parsed.limit, folder)
        for case, resumed in zip(cases, sampled, strict=True)
    ]
    done = []
    with multiprocessing.get_context("fork").Pool(parsed.jobs) as pool:
        for found in pool.imap_unordered(attempt, tasks):
            done.append(found)
            if found["wrong"]:
                print(f"{found['case']}: {'; '.join(found['wrong'])}: {found['runs']}", flush=True)
    ended = sum(not found["wrong"] for found in done)
    resumable = [found["identical"] for found in done if found["identical"] is not None]
    if ended == len(done):
        shutil.rmtree(folder)
    result = {"tried": len(done), "ended": ended, "resumed": len(resumable)}
    result["resumable"] = sum(resumable)
    result["longest_s"] = round(max(found["seconds"] for found in done), 1)
    print(json.dumps(result))
    sys.exit(ended != len(done))


if __name__ == "__main__":
    # the run's processes name the callback as signals.Passes: let that be this module
    sys.modules["signals"] = sys.modules["__main__"]
    main()
