"""The callbacks of training in two processes: replicated (DDP) and sharded (FSDP2)."""

import csv
import json
from dataclasses import asdict

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tolerances import same

pytestmark = pytest.mark.slow

FITS = [
    {"name": "whole", "steps": 4},
    {
        "name": "resumed",
        "steps": 4,
        "counting": False,
        "resume": "whole/checkpoints/00000002.ckpt",
    },
    {"name": "spoilt", "steps": 3, "spoilt": 2},
]


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def ranks(request, tmp_path_factory, shapes_folder, weights):
    """Folder of the fits, their results by name, and what each rank said."""
    out = tmp_path_factory.mktemp(request.param)
    fits = [{**each, "strategy": request.param} for each in FITS]
    plan = {"shapes": str(shapes_folder), "out": str(out), "weights": asdict(weights), "fits": fits}
    (out / "plan.json").write_text(json.dumps(plan))
    said = run_ranks("ranks_callbacks.py", out / "plan.json")
    results = {
        each["name"]: torch.load(out / f"{each['name']}.pt", weights_only=True) for each in FITS
    }
    return out, results, said


def test_the_average_follows_the_weights(ranks):
    out, results, _ = ranks
    whole = results["whole"]
    expected = None
    for step, weights in enumerate(whole["weights"], 1):
        decay = min(0.9, (1 + step) / (10 + step))
        if expected is not None:
            for name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * weights[name].double()
                torch.testing.assert_close(
                    whole["average"][step - 1][name].double(), expected[name], rtol=1e-5, atol=1e-7
                )
        else:
            expected = {name: t.double() for name, t in whole["average"][0].items()}
    assert not same(whole["average"][-1], whole["weights"][-1])
    saved = torch.load(out / "whole/checkpoints/00000004.ckpt", weights_only=True)
    assert same(saved["callbacks"]["EMA"]["average"], whole["average"][-1])
    written = load_file(out / "whole/weights_ema.safetensors")
    assert same(written, whole["average"][-1])


def test_resumed_without_counting_flops_it_is_the_same_bit_for_bit(ranks):
    _, results, _ = ranks
    for kind in ("weights", "average"):
        pairs = zip(results["resumed"][kind], results["whole"][kind][2:], strict=True)
        assert all(same(a, b) for a, b in pairs)


def test_a_loss_that_is_bad_on_one_rank_stops_all_from_stepping(ranks):
    _, results, said = ranks
    spoilt = results["spoilt"]
    for kind in ("weights", "average"):
        assert same(spoilt[kind][1], spoilt[kind][0]) and not same(spoilt[kind][2], spoilt[kind][1])
        assert all(t.isfinite().all() for t in spoilt[kind][-1].values())
    assert spoilt["skipped"] == 1 and results["whole"]["skipped"] == 0
    for rank, text in enumerate(said):
        assert "step 2 was not taken" in text and f"Its samples on rank {rank}: " in text


def test_the_first_rank_prints_the_summary(ranks):
    _, _, said = ranks
    assert "generation.dit" in said[0] and "generation.dit" not in said[1]


def test_norms_are_those_of_the_whole_gradient(ranks):
    out, results, _ = ranks
    rows = list(csv.DictReader((out / "whole/metrics.csv").open()))
    logged = [float(row["grad_norm/all"]) for row in rows if row.get("grad_norm/all")]
    assert logged == pytest.approx(results["whole"]["norms"], rel=1e-5)
