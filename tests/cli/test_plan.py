"""`triptych plan`: budgets of the recipes, what fits a card, and what is said of what does not."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from builders import ROOT
from fake_cuda.model import place, stage_model
from lightning import Trainer
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.cli import lightning
from triptych.cli.main import main
from triptych.cli.plan import fit
from triptych.cli.plan.cost import Budget, budget, stage_flops
from triptych.cli.plan.fit import check_fit
from triptych.cli.plan.memory import Way, WayMemory
from triptych.cli.plan.report import refusal
from triptych.cli.plan.request import read_request
from triptych.data_modules import ShapesDataModule
from triptych.interfaces import BatchContents
from triptych.modules import UnifiedModule
from triptych.training.flop_counter import count_flops
from triptych.training.gpu_specs import GPU, GPUS, gpu_of
from triptych.training.memory.replay import StepMemory
from triptych.training.synthetic_batches import edit_batch
from triptych.utils.errors import UserError

RECIPES = sorted((ROOT / "conf" / "recipes" / "published").glob("*.yaml"))


def test_every_stage_has_a_recipe():
    stages = {path.stem for path in (ROOT / "conf" / "stages").glob("*.yaml")}
    assert {path.stem for path in RECIPES} == stages


# no budget knows images in prompts, or steps that compute with other weights too
PRICED = [
    path for path in RECIPES if path.stem not in ("edits", "reconstruct", "rl", "preferences")
]


@pytest.mark.parametrize("path", PRICED, ids=lambda path: path.stem)
def test_recipe_comments_match_the_cost_at_both_sizes(path):
    lines = re.findall(r"# budget (\S+): (\d+) GPUs.*", path.read_text())
    assert [preset for preset, _ in lines] == ["blip3o_4b", "blip3o_8b"]
    written = [line for line in path.read_text().splitlines() if line.startswith("# budget ")]
    if path.stem in ("decoder", "encoder"):  # no language model in them: both sizes cost the same
        assert written.pop() == written[0].replace("blip3o_4b", "blip3o_8b")
        lines.pop()
    for (preset, gpus), line in zip(lines, written, strict=True):
        assert budget(preset, path.stem, int(gpus)).line(preset) == line


def test_days_are_work_over_speed():
    """989 TFLOP/s at 40%: a day is 3.418e19 FLOPs on each GPU."""
    run = Budget(gpus=2, batch_size=10, steps=1000, flops=3.418e15)
    assert run.days(run.flops) == pytest.approx(1.0, rel=1e-3)
    written = "# budget mine: 2 GPUs x 10 x 1000 steps, at 40% of 989 TFLOP/s: 1.00 days (3418.00"
    assert run.line("mine").startswith(written)


SHALLOW = [
    "--model.understanding.init_args.vlm.init_args.text.num_hidden_layers=4",
    "--model.understanding.init_args.vlm.init_args.vision.depth=8",
    "--model.generation.init_args.dit.init_args.depth=3",
    "--model.encoder.init_args.depth=2",
]
"""The published widths, shallow: counted in seconds."""


def planned(capsys, *flags, preset="tiny", stage="stage2"):
    """JSON of a plan and the message it ended with, None if the run fits."""
    problem = None
    try:
        main(["plan", "--preset", preset, "--stage", stage, "--json", *flags])
    except SystemExit as end:
        assert end.code == 1
        problem = capsys.readouterr()
        return json.loads(problem.out), problem.err
    return json.loads(capsys.readouterr().out), problem


def test_the_plan_adds_up_and_tells_what_fits(capsys):
    found, problem = planned(
        capsys, "--hardware", "fsdp2", "--devices", "8", *SHALLOW, preset="blip3o_8b"
    )
    parts = ("parameters", "gradients", "optimizer", "ema", "activations")
    assert found["peak_bytes"] == sum(found[f"{part}_bytes"] for part in parts)
    assert found["fits"] and problem is None and found["problem"] is None
    assert found["frozen_params"] == "replicate" and found["ema_bytes"] > 0
    assert found["batch_size"] == 16 < found["largest_batch"]
    rows = {
        (r["strategy"], r["activation_checkpointing"], r["features"]): r for r in found["table"]
    }
    assert {key[0] for key in rows} == {"ddp", "shard", "replicate"} and len(rows) == 12
    assert rows["shard", False, "cached"]["peak_bytes"] < rows["ddp", False, "cached"]["peak_bytes"]
    assert rows["ddp", True, "cached"]["peak_bytes"] < rows["ddp", False, "cached"]["peak_bytes"]
    sharded, replicated = (rows[way, False, "cached"] for way in ("shard", "replicate"))
    assert sharded["traffic_bytes"] > 2 * replicated["traffic_bytes"]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(capsys):
    flags = ["--gpu", "4090", *SHALLOW]
    found, message = planned(capsys, "--batch-size", "256", *flags, preset="blip3o_4b")
    assert not found["fits"] and found["largest_batch"] < 256
    assert f"--data.batch_size={found['largest_batch']}" in message
    assert message.count("\n") == 1 and message.startswith("triptych: ")
    size = found["largest_batch"]
    found, problem = planned(capsys, "--batch-size", str(size), *flags, preset="blip3o_4b")
    assert found["fits"] and problem is None
    # each batch size is counted anew, and the largest was reckoned from one of 256
    larger = str(size + max(2, size // 20))
    found, problem = planned(capsys, "--batch-size", larger, *flags, preset="blip3o_4b")
    assert not found["fits"]


@pytest.mark.parametrize("name", ["NVIDIA H100", "h100", "H100 80GB", "rtx 4090", "A100-40GB"])
def test_cards_are_known_by_the_names_people_use(name):
    assert gpu_of(name) in GPUS.values()


def test_an_unknown_card_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'voodoo2' is unknown.*h100.*mi300x"):
        gpu_of("voodoo2")


def test_memory_of_cards_is_what_the_driver_leaves():
    """Memory in MiB as nvidia-smi and torch were seen to show it."""
    shown = {"h100": 81559, "a100-40": 40960, "a10": 23028, "l40s": 46068, "h200": 142336}
    for name, mib in shown.items():
        assert gpu_of(name).memory == pytest.approx(mib * 2**20, rel=0.02)


@pytest.mark.slow
def test_stages_that_show_images_are_planned(capsys):
    found, _ = planned(capsys, stage="edits")
    captions, _ = planned(capsys, stage="stage3")
    assert found["flops_per_sample"] > captions["flops_per_sample"]
    assert found["features"] == "cached" and found["fits"] and len(found["table"]) == 4


@pytest.mark.parametrize("source", ["none", "channels", "tokens"])
def test_flops_of_an_edit_count_the_image_in_its_prompt_and_the_source(source):
    """Of one sample without repeated noise, by torch's counter."""
    dit = "--model.generation.init_args.dit.init_args"
    flags = "--model.build_decoder=false", f"{dit}.source={source}"
    model = place(stage_model("tiny", "edits", *flags), torch.device("cpu"))
    model.train().generation.flow = replace(model.generation.flow, num_noise_samples=1)
    features = torch.zeros(1, *model.target_encoder.feature_shape)
    batch = edit_batch(model, 1, features=features, pixels=False)
    with sdpa_kernel(SDPBackend.MATH):  # torch 2.11 counts no fused attention of the processor
        found = count_flops(lambda: model.step(batch)[0].backward())
    assert stage_flops(model, edits=True)[0] == pytest.approx(found, rel=0.02)


def test_the_encoder_stage_is_not_planned_sharded(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--preset", "tiny", "--stage", "encoder", "--hardware", "fsdp2"])
    assert "cannot be sharded; choose --hardware ddp" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [10**9, 10**7])
def test_a_fit_is_refused_on_a_card_that_is_too_small(memory, capsys):
    """Run the check of `fit` on a GPU, with a Trainer on the CPU and a given card."""
    request = read_request("tiny", "stage2", "single", devices=1, gpu=gpu_of("h100"))
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=10, enable_checkpointing=False)
    card = GPU("card", memory, 1e12, 1e9)
    data = ShapesDataModule(batch_size=4)
    if memory == 10**9:
        check_fit(request.model, trainer, data, card)
        assert "plan: tiny stage2, 1 x card" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match="tiny stage2 needs .* GB .* card has"):
            check_fit(request.model, trainer, data, card)
    assert not request.model.generation.dit.is_built


@pytest.mark.parametrize("has_features", [True, False])
def test_a_fit_is_planned_with_the_features_of_its_data(has_features, capsys):
    request = read_request("tiny", "stage2", "single", devices=1, gpu=gpu_of("h100"))
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=10, enable_checkpointing=False)
    contents = BatchContents(has_features, shows_images=False)
    data = SimpleNamespace(batch_size=4, batch_contents=lambda: contents)
    check_fit(request.model, trainer, data, GPU("card", 10**9, 1e12, 1e9))
    assert ("cached features" if has_features else "live features") in capsys.readouterr().out


def test_a_fit_is_refused_before_it_loads_weights(triptych, monkeypatch):
    monkeypatch.setattr(lightning, "on_gpu", lambda trainer: True)
    monkeypatch.setattr(fit, "gpu_of_rank", lambda trainer: GPU("card", 10**7, 1e12, 1e9))
    monkeypatch.setattr(UnifiedModule, "configure_model", lambda model: pytest.fail("loads"))
    words = ["fit", "--preset", "tiny", "--stage", "stage2", "--data.images=32"]
    status, _, err = triptych(*words)
    assert status == 1
    assert re.search(r"tiny stage2 needs .*live features.* card has 0.01 GB", err), err


def test_features_made_ahead_are_named_where_only_they_fit():
    card = GPU("card", 10**11, 1e12, 1e9)
    request = read_request("tiny", "stage2", "single", devices=1, gpu=card)

    def way(cached, peak, fits):
        found = StepMemory(peak, 0, 0, 0, 0)
        return WayMemory(Way("single", recompute=False, cached=cached), found, 4, fits)

    live, cached = way(False, 10**12, False), way(True, 10**9, True)
    said = refusal(request, live, [cached, live])
    assert "--data.batch_size=4 or features made ahead by `triptych data features`." in said
    assert "features made ahead" not in refusal(request, live, [live])
