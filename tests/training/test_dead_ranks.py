"""Ranks that die or hang (gloo, CPU): the others end with a message, and the run resumes."""

import json
import os
import sys

import processes
import pytest
import torch
import torture
import yaml
from builders import ROOT

THREE = """
import os, signal, socket, time
from datetime import timedelta
from torch import distributed, ones
from processes import exit_status, forked
from triptych.training.ranks import announce_failures, ending_together
from triptych.utils.signals import supervisor

def run(rank, port, case):
    distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=3, timeout=timedelta(seconds=4)
    )
    with supervisor.handled(), ending_together():
        announce_failures()
        distributed.barrier()
        if rank == 1 and case == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1:
            time.sleep(300)
        if rank == 0:
            time.sleep(0.3)  # so the last rank announces, and the first one holds the store
        distributed.all_reduce(ones(1))

for case in ("killed", "hangs"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [forked(lambda rank=rank: run(rank, port, case)) for rank in range(3)]
    print(case, *(exit_status(pid, 120) for pid in started), flush=True)
"""


@pytest.mark.slow
def test_the_others_name_a_rank_that_does_not_respond(tmp_path):
    (tmp_path / "three.py").write_text(THREE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers")}
    done = processes.run([sys.executable, tmp_path / "three.py"], seconds=300, env=environment)
    assert done.stdout == "killed 1 -9 1\nhangs 1 1 1\n", done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("triptych: ")]
    assert said == 2 * [
        "triptych: rank 1 does not respond, so the others end; "
        "--ckpt_path=auto resumes the run from the last whole checkpoint."
    ]


@pytest.mark.parametrize(
    ("only", "seed"),
    [
        # each strategy under each launcher, and every place and event
        pytest.param(6, 79, marks=pytest.mark.slow),
        pytest.param(12, 0, marks=pytest.mark.sweep),
    ],
)
def test_three_ranks_end_within_a_time_limit_and_resume_bit_for_bit(only, seed):
    words = ["--ranks", "3", "--places", "forward", "backward", "stepped", "--times", "1"]
    words += ["--events", "kill-first", "kill-last", "mistake", "--resume", "3", "--limit", "30"]
    words += ["--strategies", "ddp", "fsdp2", "sharded", "--launchers", "lightning", "torchrun"]
    command = [sys.executable, ROOT / "benchmarks" / "signals.py", *words]
    command += ["--only", str(only), "--seed", str(seed)]
    done = processes.run(command, seconds=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tried"] == found["ended"] == only
    assert found["resumed"] == found["resumable"] == only // 3


def torchrun(config, runs, strategy):
    """A run of three ranks by torchrun; resumes what is in the folder `runs`."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "-m", "triptych"]
    words += [*torture.command(config, runs), "--trainer.devices=3"]
    chosen = json.dumps({"class_path": f"triptych.training.strategies.{strategy}"})
    words += [f"--trainer.strategy={chosen}"]
    paths = os.pathsep.join([str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    environment |= {"DYING_RANK": str(runs.parent / "killed")}
    return processes.run([sys.executable, *words], seconds=600, env=environment)


def last_state(runs):
    """Trained weights and optimizer state of a run's last checkpoint."""
    found = sorted(runs.glob("run/version_*/checkpoints/00000008.ckpt"))
    state = torch.load(found[-1], weights_only=True)
    return torture.flat([state["state_dict"], state["optimizer_states"]])


@pytest.fixture(scope="module")
def killing(tmp_path_factory):
    """Configuration of a small stage 2 in which the second rank is killed in its sixth step."""
    folder = tmp_path_factory.mktemp("torchrun")
    config = yaml.safe_load(torture.settings(folder).read_text())
    kept = [c for c in config["trainer"]["callbacks"] if "torture" not in c["class_path"]]
    config["trainer"]["callbacks"] = [{"class_path": "dying_rank.DyingRank"}, *kept]
    (folder / "killing.yaml").write_text(yaml.safe_dump(config))
    return folder / "killing.yaml"


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ShardedStrategy", marks=pytest.mark.slow),
        pytest.param("LeanDDPStrategy", marks=pytest.mark.sweep),
    ],
)
def test_under_torchrun_a_killed_rank_ends_the_run_which_resumes(strategy, killing, tmp_path):
    whole, runs = tmp_path / "whole" / "runs", tmp_path / "killed" / "runs"
    for each in (whole, runs):
        each.mkdir(parents=True)
    (whole.parent / "killed").touch()  # nothing more to do
    done = torchrun(killing, whole, strategy)
    assert done.returncode == 0, done.stderr[-4000:]
    killed = torchrun(killing, runs, strategy)
    assert killed.returncode == 1
    assert "local_rank: 1" in killed.stderr and "Signal 9 (SIGKILL)" in killed.stderr
    resumed = torchrun(killing, runs, strategy)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert last_state(runs) == last_state(whole)
