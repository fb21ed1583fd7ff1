"""Runs of four ranks that resume on two and on one (gloo, CPU): DDP, FSDP2, sharded checkpoints."""

import json
import os
import sys
from dataclasses import asdict

import processes
import pytest
import torch
from builders import ROOT

from triptych.training.shard_sizes import checkpoint_plan

HALF = "checkpoints/00000002.ckpt"
# Eight samples a step: two a rank and micro-batch, in as many micro-batches as that takes.
RUN = {"steps": 4, "every": 2, "batch": 2}
STRATEGIES = ["ddp", "fsdp2", "fsdp2_files"]


def world(ranks, strategies):
    """A world in which the runs of four ranks begin, or resume from half of their steps."""
    fits = [
        {
            "name": f"{strategy}_{ranks}",
            "strategy": strategy,
            "accumulate": 4 // ranks,
            **({"resume": f"{strategy}_4/{HALF}"} if ranks < 4 else {}),
            **RUN,
        }
        for strategy in strategies
    ]
    return {"ranks": ranks, "fits": fits}


def run_worlds(out, shapes, weights, worlds):
    """Results of all fits by name, and the folder of their checkpoints."""
    plan = {"shapes": str(shapes), "out": str(out), "weights": asdict(weights), "worlds": worlds}
    (out / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, ROOT / "tests/helpers/ranks_worlds.py", out / "plan.json"]
    done = processes.run(command, seconds=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = {path.stem: torch.load(path, weights_only=True) for path in out.glob("*.pt")}
    return {**found, "folder": out}


def resumes_with_the_same_samples_and_losses(resumed, whole):
    """Check the second half of a run against that of the world that made its checkpoint.

    Samples are the same, bit for bit. Losses of the first resumed step differ only by rounding: the
    weights are the same, and sums over 2, 4 or 8 samples end in another order. 16 units of float32
    cover that; Adam's division by small second moments enlarges it in the steps that follow.
    """
    assert resumed["samples"] == whole["samples"][2:]
    assert resumed["losses"][0] == pytest.approx(whole["losses"][2], rel=16 * 2**-24)
    assert resumed["losses"] == pytest.approx(whole["losses"][2:], rel=1e-5)


@pytest.fixture(scope="module")
def every(tmp_path_factory, shapes_folder, weights):
    out = tmp_path_factory.mktemp("every")
    worlds = [world(ranks, STRATEGIES) for ranks in (4, 2, 1)]
    return run_worlds(out, shapes_folder, weights, worlds)


@pytest.mark.slow
def test_every_sample_of_four_ranks_is_seen_once(every):
    numbers = [number for step in every["fsdp2_4"]["samples"] for number, _ in step]
    assert sorted(numbers) == list(range(4 * 8))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fewer_ranks_resume_what_four_have_saved(strategy, ranks, every):
    resumes_with_the_same_samples_and_losses(every[f"{strategy}_{ranks}"], every[f"{strategy}_4"])


@pytest.mark.slow
def test_four_ranks_agree_whatever_the_strategy(every):
    for strategy in STRATEGIES[1:]:
        assert every[f"{strategy}_4"]["samples"] == every["ddp_4"]["samples"]
        assert every[f"{strategy}_4"]["losses"] == pytest.approx(every["ddp_4"]["losses"], rel=1e-5)


@pytest.mark.slow
def test_four_ranks_write_the_files_of_the_plan(every):
    folder = every["folder"] / "fsdp2_files_4" / HALF
    state = {name: torch.nn.Parameter(t) for name, t in every["fsdp2_files_4"]["state"].items()}
    plan = checkpoint_plan(state, 4, save_sharded=True)
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert len(files) + 1 == plan.files  # and the manifest beside it
    for rank, expected in enumerate(plan.rank_bytes):
        # each tensor is a file of its own inside: at most 2 KiB of headers
        size = (folder / f"__{rank}_0.distcp").stat().st_size
        assert expected - 4 * len(state) <= size <= expected + 2048 * 3 * len(state)
