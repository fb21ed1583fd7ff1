"""Learning from rewards and from pairs on two ranks, by DDP and FSDP2, against one process."""

import json
from dataclasses import asdict

import pytest
import ranks
import torch
from preference_models import write_preferences
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


PAIRS = [
    {"name": "pairs_ddp", "strategy": "ddp"},
    {"name": "pairs_fsdp2", "strategy": "fsdp2"},
    {"name": "pairs_begun", "strategy": "fsdp2", "steps": 1},
    {"name": "pairs_resumed", "strategy": "fsdp2", "resume": "pairs_begun"},
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return str(write_preferences(tmp_path_factory.mktemp("pairs") / "preferences"))


@pytest.fixture(scope="module")
def found(weights, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward-ranks")
    fits = [*FITS, *RESUMED, *({**settings, "pairs": pairs} for settings in PAIRS)]
    plan = {"out": str(out), "weights": asdict(weights), "fits": fits}
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
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_learn_from_pairs_what_one_does(strategy, found, weights, pairs, tmp_path):
    alone = fit(tmp_path, asdict(weights), "alone", pairs=pairs)
    two = found[f"pairs_{strategy}"]
    assert two["samples"] == alone["samples"]
    assert apart(two["gradients"], alone["gradients"]) < 1e-4
    # a margin is multiplied by beta / 2, a thousand
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs", [("whole", "begun", "resumed"), ("pairs_fsdp2", "pairs_begun", "pairs_resumed")]
)
def test_a_sharded_run_resumes_to_the_bit(runs, found):
    whole, begun, resumed = (found[name] for name in runs)
    assert whole["losses"] == [*begun["losses"], *resumed["losses"]]
    assert all(torch.equal(whole["state"][name], resumed["state"][name]) for name in whole["state"])
