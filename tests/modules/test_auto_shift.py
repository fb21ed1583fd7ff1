"""flow.shift: auto: its formula, what is measured, kept and printed, and what is refused."""

import json
import logging
import math
from dataclasses import asdict

import pytest
import ranks
import torch
from builders import batches, data, needed, steps, unified, vae
from lightning import Callback, Trainer
from small_parts import siglip

from triptych.backbones import EvaClip
from triptych.checkpoints import WeightFiles
from triptych.checkpoints.training_checkpoint import export_checkpoint
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import TEXT_TO_IMAGE, Condition
from triptych.loss import FlowConfig, dimension_shift, shift_time
from triptych.modules import generation as generation_file
from triptych.modules.auto_shift import measured_std
from triptych.modules.base import target_features
from triptych.utils.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def unknown():
    """The small encoder standardizes; here its deviation is to be measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaClip, "feature_std", None)
        yield


def auto(weights, stage="stage2", **settings):
    model = unified(stage, weights=needed(weights, stage), **settings)
    model.generation.flow = FlowConfig(shift="auto")
    return model


def ready(weights, **settings):
    model = auto(weights, **settings)
    model.configure_model()
    return model.train()


# --- the formula ----------------------------------------------------------------------------------


def test_the_rule_in_numbers():
    assert dimension_shift((1792, 8, 8), 1.0) == pytest.approx(5.29, abs=0.005)
    assert dimension_shift((1152, 16, 16), 1.0) == pytest.approx(8.49, abs=0.005)
    assert dimension_shift((4, 32, 32), 1.0) == 1.0


@pytest.mark.parametrize("std", [0.25, 1.0, 3.0])
def test_features_of_any_deviation_are_trained_at_the_same_signal_to_noise_ratio(std):
    t, shape = torch.linspace(0.01, 0.99, 9, dtype=torch.float64), (32, 4, 4)
    unit = shift_time(t, dimension_shift(shape, 1.0))
    own = shift_time(t, dimension_shift(shape, std))
    assert torch.allclose(std * (1 - own) / own, (1 - unit) / unit)


def test_the_deviation_is_around_the_mean_of_each_channel():
    draw = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    scales, means = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([100.0, -3, 0, 7, 1])
    features = draw * scales[:, None, None] + means[:, None, None]
    expected = features.var((0, 2, 3), correction=0).mean().sqrt()
    assert measured_std(features, over_ranks=False) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("shift", [0, -1.0, "big", float("nan"), True])
def test_a_shift_is_a_positive_number_or_auto(shift):
    with pytest.raises(UserError, match="flow.shift is .*; give a number above 0, .* or auto"):
        FlowConfig(shift=shift)


# --- measured, and kept ---------------------------------------------------------------------------


def test_a_number_keeps_the_names_of_the_state(weights):
    plain = unified("stage2", weights=needed(weights, "stage2"))
    plain.configure_model()
    model = ready(weights)
    assert model.state_dict().keys() - plain.state_dict().keys() == {"generation.feature_std"}
    assert model.trained_state().keys() - plain.trained_state().keys() == {"generation.feature_std"}
    # the random draws of everything else are the same
    assert torch.equal(model.generation.queries, plain.generation.queries)


def test_the_first_step_measures_and_the_loss_is_that_of_the_number(weights, samples):
    model = ready(weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    features = target_features(batch, model.encoder)
    std = float(measured_std(features, over_ranks=False))
    expected = dimension_shift(model.generation.feature_shape, std)
    loss = model.step(batch)[0]
    assert float(model.generation.feature_std) == pytest.approx(std, rel=1e-6)
    assert model.generation.shift == pytest.approx(expected, rel=1e-6)
    model.generation.flow = FlowConfig(shift=model.generation.shift)
    assert model.step(batch)[0].item() == loss.item()
    # later batches change nothing
    model.generation.flow = FlowConfig(shift="auto")
    before = model.generation.shift
    steps(model, batches(model, samples, TEXT_TO_IMAGE, range(4, 8)), 2)
    assert model.generation.shift == before


def test_a_validation_before_training_measures_for_itself(weights, samples):
    model = ready(weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    model.eval()
    loss = model.step(batch)[0].item()
    assert float(model.generation.feature_std) == 0
    model.train().step(batch)
    assert model.eval().step(batch)[0].item() == loss


def test_an_encoder_that_standardizes_is_known(monkeypatch, weights, samples, caplog):
    known = property(lambda encoder: 1.0 if encoder.standardize else None)
    monkeypatch.setattr(EvaClip, "feature_std", known)
    model = ready(weights)
    unit = dimension_shift(model.generation.feature_shape, 1.0)
    assert model.generation.shift == unit
    with caplog.at_level(logging.INFO):
        steps(model, batches(model, samples, TEXT_TO_IMAGE), 1)
    assert model.generation.shift == unit and "which the encoder standardizes" in caplog.text


def test_encoders_know_whether_they_standardize():
    assert EvaClip.__dict__["feature_std"] is None  # the fixture's
    assert (vae().feature_std, vae(scaling=0.13).feature_std) == (1.0, None)
    assert siglip().feature_std is None


def test_it_is_printed_once_with_its_parts(weights, samples, caplog):
    model = ready(weights)
    with caplog.at_level(logging.INFO):
        steps(model, batches(model, samples, TEXT_TO_IMAGE), 3)
    (line,) = [r.message for r in caplog.records if "flow.shift" in r.message]
    m = math.prod(model.generation.feature_shape)
    assert f"{model.generation.shift:.3f} = sqrt(m/n) s" in line
    assert f"m = {m} (" in line and "n = 4096" in line and "measured and kept" in line
    assert f"s = {float(model.generation.feature_std):.4g}" in line


# --- runs, files and inference --------------------------------------------------------------------


class FirstBatch(Callback):
    """Keeps the deviation after each step, and replaces the features by scaled ones."""

    def __init__(self, scale=1.0):
        self.scale, self.seen = scale, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch.target_pixels = (batch.target_pixels.float() * self.scale).to(torch.uint8)

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(float(module.generation.feature_std))


def fit(model, folder, shapes, watch, max_steps, ckpt_path=None):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data(shapes), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return folder / "end.ckpt"


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights, shapes_folder):
    """A run of two steps: its last checkpoint, and the deviations after each step."""
    folder, watch = tmp_path_factory.mktemp("auto"), FirstBatch()
    path = fit(auto(weights, build_decoder=False), folder, shapes_folder, watch, 2)
    return path, watch.seen


def test_a_resumed_run_keeps_the_value(run, weights, shapes_folder, tmp_path):
    path, seen = run
    assert seen[0] > 0 and len(set(seen)) == 1
    watch = FirstBatch(scale=0.1)  # images that would measure another one
    fit(auto(weights, build_decoder=False), tmp_path, shapes_folder, watch, 3, path)
    assert watch.seen == [seen[0]]


def test_sampling_from_the_file_uses_it_in_every_dtype(run, weights, tmp_path, monkeypatch):
    path, seen = run
    file = tmp_path / "generation.safetensors"
    export_checkpoint(path, file, average=False, dtype=torch.bfloat16)
    named = WeightFiles(**{**asdict(weights), "generation": str(file)})
    model = unified("inference", weights=named)
    model.generation.flow = FlowConfig(shift="auto")
    model.configure_model()
    model.to(torch.bfloat16)
    shape = model.generation.feature_shape
    assert model.generation.shift == pytest.approx(dimension_shift(shape, seen[0]), rel=1e-7)
    used = []
    plain = generation_file.sample_flow
    monkeypatch.setattr(
        generation_file,
        "sample_flow",
        lambda *args, **named: used.append(named["shift"]) or plain(*args, **named),
    )
    width = model.generation.condition_width
    condition = Condition(torch.zeros(1, 4, width, dtype=torch.bfloat16))
    model.generation.sample(condition, [0])
    assert used == [model.generation.shift]


def test_weights_without_the_value_are_refused_before_any_work(weights, monkeypatch):
    model = unified("inference", weights=weights)
    model.generation.flow = FlowConfig(shift="auto")
    with torch.random.fork_rng():
        model.build()
    sentence = "flow.shift is auto, and these weights do not hold .* deviation .*; train them with"
    with pytest.raises(UserError, match=sentence):
        model.generation.sample(Condition(torch.zeros(1, 4, model.generation.condition_width)), [0])
    monkeypatch.setattr(type(model), "preprocessing", None)
    pipe = UnifiedPipeline(model, name="small", device="cpu")
    with pytest.raises(UserError, match=sentence):
        pipe("a red circle")


def test_a_checkpoint_of_a_number_is_not_resumed_by_auto(weights, shapes_folder, tmp_path, run):
    model = unified("stage2", weights=needed(weights, "stage2"), build_decoder=False)
    with pytest.raises(UserError, match="another stage or preset.*generation.feature_std"):
        fit(model, tmp_path, shapes_folder, Callback(), 3, run[0])


@pytest.mark.slow
def test_ranks_measure_together(shapes_folder, weights, tmp_path):
    common = {"stage": "stage2", "steps": 2, "shift": "auto"}
    fits = [{"name": name, "strategy": name, "batch": 4, **common} for name in ("ddp", "fsdp2")]
    plan = {"shapes": str(shapes_folder), "out": str(tmp_path), "weights": asdict(weights)}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "fits": fits, "cut": []}))
    ranks.run_ranks("ranks.py", tmp_path / "plan.json")
    one = ranks.fit(shapes_folder, tmp_path, "one", asdict(weights), batch=8, **common)
    for name in ("ddp", "fsdp2"):
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        key = "generation.feature_std"
        assert float(two["state"][key]) == pytest.approx(float(one["state"][key]), rel=1e-5)
