"""Learning from rewards on two ranks, by DDP and FSDP2, against one process."""

import json
from dataclasses import asdict

import pytest
import ranks
import torch
from ranks_rewards import fit
from split_batches import apart

FITS = [
    {"name": f"{strategy}_{algorithm}", "strategy": strategy, "algorithm": algorithm}
    for strategy in ("ddp", "fsdp2")
    for algorithm in ("matching", "grpo")
]
# stopped between the steps that learn from one set of images
RESUMED = [
    {"name": "whole", "strategy": "fsdp2", "steps": 5},
    {"name": "begun", "strategy": "fsdp2", "steps": 3},
    {"name": "resumed", "strategy": "fsdp2", "steps": 5, "resume": "begun"},
]


@pytest.fixture(scope="module")
def found(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward-ranks")
    plan = {"out": str(out), "weights": asdict(weights), "fits": [*FITS, *RESUMED]}
    (out / "plan.json").write_text(json.dumps(plan))
    ranks.run_ranks("ranks_rewards.py", out / "plan.json")
    names = [settings["name"] for settings in plan["fits"]]
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["matching", "grpo"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_draw_and_learn_what_one_does(strategy, algorithm, found, weights, tmp_path):
    """Advantages are divided by a deviation over all ranks."""
    alone = fit(tmp_path, asdict(weights), "alone", algorithm=algorithm)
    two = found[f"{strategy}_{algorithm}"]
    assert two["samples"] == alone["samples"]
    assert apart(two["gradients"], alone["gradients"]) < 1e-4
    # the sum of advantages that cancel: pixels may be rounded otherwise in other batches
    assert two["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert two["rewards"] == pytest.approx(alone["rewards"], rel=1e-3)


@pytest.mark.slow
def test_a_sharded_run_resumes_to_the_bit(found):
    whole, begun, resumed = (found[name] for name in ("whole", "begun", "resumed"))
    assert whole["losses"] == [*begun["losses"], *resumed["losses"]]
    assert all(torch.equal(whole["state"][name], resumed["state"][name]) for name in whole["state"])
