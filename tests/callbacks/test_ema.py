"""Average of the weights: updates, swapping, resuming."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from line_model import Line, Numbers, Snapshots, fit, snapshot
from safetensors.torch import load_file
from tolerances import same
from torch import nn

from triptych.callbacks import (
    EMA,
    Checkpoint,
)
from triptych.utils.errors import UserError


def test_ema_is_the_recurrence_in_float64(tmp_path):
    ema, seen, model = EMA(decay=0.9, warmup=True), Snapshots(), Line()
    start = snapshot(model)
    fit(model, tmp_path, ema, seen, steps=20)
    expected = {name: start[name].double() for name in ema.average}
    for step, weights in enumerate(seen.weights, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * weights[name].double()
    assert ema.average.keys() == model.trained  # nothing of what is frozen
    for name, value in expected.items():
        torch.testing.assert_close(ema.average[name].double(), value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(ema.average[name], seen.weights[-1][name])


def test_ema_accumulates_updates_below_bfloat16_resolution():
    model = nn.Linear(1, 1, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(decay=0.9999, warmup=False)
    ema._attach(model)
    nn.init.constant_(model.weight, 1.046875)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(5000):
        ema._follow(optimizer)
    expected = 1 + 0.046875 * (1 - 0.9999**5000)
    assert ema.average["weight"].item() == pytest.approx(expected, abs=1e-4)


def test_validation_takes_the_average_and_training_its_own_weights(tmp_path):
    class Averages(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
            self.during = {n: p.detach().clone() for n, p in module.trained_state().items()}
            self.average = {n: t.clone() for n, t in ema.average.items()}

        def on_validation_end(self, trainer, module):
            self.after = snapshot(module)

    ema, averages, seen = EMA(decay=0.9), Averages(), Snapshots()
    fit(Line(), tmp_path, seen, ema, averages, steps=4, val_check_interval=4)
    assert same(averages.during, averages.average)
    assert same(averages.after, seen.weights[-1]) and not same(averages.during, averages.after)


def test_the_weights_come_back_after_an_exception_and_before_the_checkpoint(tmp_path):
    class Fails(Callback):
        def on_validation_batch_start(self, *_):
            raise RuntimeError("no more")

    seen, model = Snapshots(), Line()
    with pytest.raises(RuntimeError, match="no more"):
        fit(model, tmp_path, Checkpoint(9), EMA(), seen, Fails(), steps=4, val_check_interval=2)
    assert same(snapshot(model), seen.weights[-1])
    saved = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["state_dict"]
    assert same({n: saved[n] for n in seen.weights[-1]}, seen.weights[-1])


def test_swapped_gives_the_weights_back_bit_for_bit_in_bfloat16():
    model = nn.Linear(3, 3, dtype=torch.bfloat16)
    ema, before = EMA(), snapshot(model)
    ema._attach(model)
    ema.average["weight"] += 1e-4  # no number of bfloat16
    average = ema.average["weight"].clone()
    with pytest.raises(RuntimeError), ema.swapped(model):
        assert torch.equal(model.weight, average.bfloat16())
        raise RuntimeError
    assert same(snapshot(model), before) and torch.equal(ema.average["weight"], average)


def test_resume_continues_the_average_bit_for_bit(tmp_path):
    whole, half, rest = EMA(decay=0.99), EMA(decay=0.99), EMA(decay=0.99)
    fit(Line(), tmp_path / "whole", whole, Checkpoint(4), steps=8)
    fit(Line(), tmp_path / "half", half, Checkpoint(4), steps=4)
    path = next((tmp_path / "half").rglob("last.ckpt"))
    saved = torch.load(path, weights_only=True)["callbacks"]["EMA"]
    assert saved["steps"] == 4 and same(saved["average"], half.average)
    assert {t.dtype for t in saved["average"].values()} == {torch.float32}
    fit(Line(), tmp_path / "rest", rest, Checkpoint(4), steps=8, ckpt_path=str(path))
    assert rest.steps == 8 and same(rest.average, whole.average)
    assert not same(rest.average, half.average)


def test_a_checkpoint_is_validated_with_its_average(tmp_path):
    class Weights(Callback):
        def on_validation_batch_end(self, trainer, module, *_):
            self.during = snapshot(module)

    ema, weights, model = EMA(decay=0.9), Weights(), Line()
    fit(model, tmp_path / "fit", ema, Checkpoint(4), steps=4)
    path = next((tmp_path / "fit").rglob("last.ckpt"))
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[EMA(), weights], enable_progress_bar=False
    )
    trainer.validate(Line(), datamodule=Numbers(), ckpt_path=path, verbose=False, weights_only=True)
    assert same({n: weights.during[n] for n in ema.average}, ema.average)
    assert not same(weights.during, snapshot(model))


def test_resume_with_other_parameters_is_refused(tmp_path):
    fit(Line(), tmp_path, EMA(), Checkpoint(2), steps=2)
    ema = EMA()
    state = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["callbacks"]["EMA"]
    ema.load_state_dict({**state, "average": {"other": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"disagree on first\.bias"):
        ema._attach(Line())


def test_a_fit_ends_with_the_average_as_weights(tmp_path):
    ema, model = EMA(decay=0.9), Line()
    fit(model, tmp_path, ema, steps=3)
    assert same(load_file(tmp_path / "run/weights_ema.safetensors"), ema.average)
    with pytest.raises(UserError, match="between 0 and 1"):
        EMA(decay=1.0)


def test_flattened_parameters_are_refused():
    with pytest.raises(UserError, match="FSDP1"):
        EMA().setup(SimpleNamespace(strategy=FSDPStrategy()), Line(), "fit")


def test_gradient_accumulation_moves_the_average_once_a_step(tmp_path):
    ema = EMA()
    fit(Line(), tmp_path, ema, steps=3, accumulate_grad_batches=2)
    assert ema.steps == 3
