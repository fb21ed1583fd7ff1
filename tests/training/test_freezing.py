"""Trainable and frozen parameters, down to the state of the optimizer."""

import pytest
import torch
from builders import FAST, batches, needed, unified
from torch import nn

from triptych.interfaces import TEXT_TO_IMAGE
from triptych.training.freezing import freeze_all_but, frozen_modules, match_parameters
from triptych.training.optimizer import Optimization, learning_rate_factor, make_optimizer
from triptych.utils.errors import UserError

NAMES = ["queries", "dit.layer.weight", "dit.layer.bias", "dither.weight", "unet.weight"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("queries", {"queries"}),
        ("dit", {"dit.layer.weight", "dit.layer.bias"}),  # not dither
        ("*.bias", {"dit.layer.bias"}),
        ("*", set(NAMES)),
    ],
)
def test_patterns_are_module_paths_or_globs(pattern, found):
    assert match_parameters(NAMES, [pattern]) == found


def test_patterns_add_up():
    assert match_parameters(NAMES, ["queries", "dit.layer"]) == set(NAMES[:3])


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(UserError, match=r"'dti' matches no parameter.*\['dit', 'dither'"):
        match_parameters(NAMES, ["queries", "dti"])


def test_a_misspelled_stage_is_refused(weights):
    model = unified("stage2", weights=weights, trainable=["generation.queris"])
    with pytest.raises(UserError, match="'generation.queris' matches no parameter"):
        model.configure_model()


def test_frozen_modules_are_the_largest():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert freeze_all_but(model, ["0.1"]) == {"0.1.weight", "0.1.bias"}
    assert [id(m) for m in frozen_modules(model)] == [id(model[0][0]), id(model[1])]
    freeze_all_but(model, ["1"])
    assert frozen_modules(model)[0] is model[0]


def test_frozen_parts_stay_in_evaluation_mode(weights):
    model = unified("stage2", weights=weights)
    model.configure_model()
    model.train()
    assert model.generation.dit.training and model.training
    for frozen in (model.understanding.vlm, model.encoder, model.decoding.decoder):
        assert not any(m.training for m in frozen.modules())
    model.eval()
    model.train()
    assert not model.encoder.norm.training


def test_decoder_trains_with_a_frozen_vae(weights):
    model = unified("decoder", weights=needed(weights, "decoder"))
    model.configure_model()
    model.train()
    decoder = model.decoding.decoder
    assert decoder.unet.training and decoder.baseline.training
    assert not any(m.training for m in decoder.vae.modules())


def test_trainable_defaults_to_the_panels_with_losses():
    own = {
        "stage1": ["understanding.*"],
        "stage2": ["generation.queries", "generation.dit"],
        "decoder": ["decoding.decoder.unet", "decoding.decoder.baseline"],
    }
    assert {stage: unified(stage, trainable=None).trainable for stage in own} == own
    both = unified("joint", trainable=None).trainable
    assert both == own["stage1"] + own["stage2"]


def test_the_unused_pad_token_never_trains(weights):
    model = unified("stage2", weights=weights, trainable=["generation"])
    model.configure_model()
    assert not model.generation.dit.dit.pad_token.requires_grad
    assert not any("pad_token" in name for name in model.trained)


def test_optimizer_has_no_state_for_frozen_parameters(weights, samples):
    model = unified("stage2", weights=weights)
    model.configure_model()
    settings = Optimization(lr=1e-3, weight_decay=0.1)
    optimizer = make_optimizer(model, settings)
    model.step(batches(model, samples, TEXT_TO_IMAGE))[0].backward()
    optimizer.step()
    trained = {id(p) for n, p in model.named_parameters() if n in model.trained}
    assert {id(p) for p in optimizer.state} == trained
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in vectors["params"])


def test_parts_may_learn_at_rates_of_their_own(weights):
    model = unified("joint", weights=weights)
    model.configure_model()
    rates = {"understanding": 1e-4, "*.embed_tokens.*": 1e-5}
    optimizer = make_optimizer(model, Optimization(lr=1e-3, lr_overrides=rates))
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rate_of.pop(id(p)) for name, p in model.named_parameters() if id(p) in rate_of}
    assert found.keys() == model.trained and not rate_of
    for name, rate in found.items():
        expected = 1e-3 if name.startswith("generation") else 1e-4
        assert rate == (1e-5 if "embed_tokens" in name else expected)
    assert set(found.values()) == {1e-3, 1e-4, 1e-5}


def test_learning_rate_of_a_frozen_part_is_refused(weights):
    model = unified("stage2", weights=weights)
    model.configure_model()
    with pytest.raises(UserError, match="lr_overrides, of what trains: 'understanding' matches no"):
        make_optimizer(model, Optimization(lr_overrides={"understanding": 1e-4}))


def test_learning_rate_warms_up_then_falls_to_its_end():
    settings = Optimization(lr=1e-3, min_lr=1e-5, warmup_ratio=0.1)
    factors = [learning_rate_factor(step, 100, settings) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0 and max(factors) == 1.0
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx((1 + 0.01) / 2)
    assert factors[100] == pytest.approx(0.01)


def test_learning_rate_may_stay():
    assert [learning_rate_factor(step, 10, FAST) for step in (0, 5, 10)] == [1.0, 1.0, 1.0]


def test_short_runs_have_a_learning_rate():
    factors = [learning_rate_factor(step, 1, Optimization()) for step in range(2)]
    assert all(torch.isfinite(torch.tensor(factors))) and factors[0] == 1.0


def test_another_optimizer_has_the_same_groups():
    model = torch.nn.Linear(3, 2)
    settings = Optimization(lr=1e-3, weight_decay=0.1, optimizer=torch.optim.SGD)
    ours = make_optimizer(model, Optimization(lr=1e-3, weight_decay=0.1)).param_groups
    theirs = make_optimizer(model, settings).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in theirs] == [
        (g["lr"], g["weight_decay"]) for g in ours
    ]
