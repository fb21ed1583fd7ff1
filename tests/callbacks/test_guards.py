"""Steps that are skipped: non-finite losses and gradients, spikes."""

import logging

import pytest
import torch
from line_model import Line, Snapshots, fit, snapshot
from safetensors.torch import load_file
from tolerances import same

from triptych.callbacks import (
    EMA,
    Checkpoint,
    NonFiniteGuard,
    SpikeGuard,
)
from triptych.utils.errors import UserError


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, caplog, kind, fused):
    value = float("inf") if kind == "inf" else float("nan")
    model = Line(bad=[4], value=value, fused=fused, of_gradient=kind == "gradient")
    seen, guard = Snapshots(), NonFiniteGuard()
    with caplog.at_level(logging.WARNING):
        fit(model, tmp_path, guard, EMA(0.9), seen, gradient_clip_val=1.0)
    for states in (seen.weights, seen.optimizer, seen.average):
        assert same(states[3], states[2])  # step 4 and step 3
        assert not same(states[2], states[1]) and not same(states[4], states[3])
    assert all(p.isfinite().all() for p in seen.weights[-1].values())
    assert guard.skipped == 1
    assert "step 4 was not taken" in caplog.text and "sample-6, sample-7" in caplog.text


def test_without_the_guard_the_weights_are_lost(tmp_path):
    model = Line(bad=[4])
    fit(model, tmp_path)
    assert not any(p.isfinite().all() for p in model.first.parameters())


def test_the_guard_changes_no_bit_of_a_good_run(tmp_path):
    plain, guarded = Line(), Line()
    fit(plain, tmp_path / "plain", EMA())
    fit(guarded, tmp_path / "guarded", NonFiniteGuard(), SpikeGuard(), EMA())
    assert same(snapshot(plain), snapshot(guarded))
    files = [tmp_path / name / "run/weights_ema.safetensors" for name in ("plain", "guarded")]
    assert same(*(load_file(path) for path in files))


def test_one_bad_share_of_an_accumulated_step_is_enough(tmp_path, caplog):
    seen = Snapshots()
    with caplog.at_level(logging.WARNING):
        fit(Line(bad=[3]), tmp_path, NonFiniteGuard(), seen, steps=3, accumulate_grad_batches=2)
    assert same(seen.weights[3], seen.weights[1]) and not same(seen.weights[5], seen.weights[3])
    assert "sample-4, sample-5, sample-6, sample-7" in caplog.text


def test_bad_steps_in_a_row_end_the_run_with_good_weights(tmp_path):
    seen, model = Snapshots(), Line(bad=[2, 4, 5, 6, 7])
    with pytest.raises(UserError, match=r"3 steps in a row, up to step 6 .*sample-10, sample-11"):
        fit(model, tmp_path, NonFiniteGuard(patience=3), Checkpoint(100), seen, steps=9)
    saved = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert saved["global_step"] == 6 and same(saved["state_dict"], seen.weights[2])


def test_spikes_are_left_out_and_not_learned_from(tmp_path, caplog):
    seen, guard = Snapshots(), SpikeGuard(factor=5, memory=3)
    model = Line(bad=[6, 8], value=1000.0)
    with caplog.at_level(logging.WARNING):
        fit(model, tmp_path, guard, NonFiniteGuard(), seen, steps=9)
    left_out = [n for n in range(1, 9) if same(seen.weights[n], seen.weights[n - 1])]
    assert left_out == [5, 7] and guard.skipped == 2  # counted from 0
    assert "step 6 was not taken: the loss was above 5 times its running mean" in caplog.text
    mean = 0.0
    taken = [loss for step, loss in enumerate(model.losses) if step not in left_out]
    for number, loss in enumerate(taken, 1):
        mean += (loss - mean) / min(number, 3)
    assert guard.mean.item() == pytest.approx(mean, rel=1e-5)


def test_a_spike_before_the_mean_is_known_is_taken(tmp_path):
    seen, guard = Snapshots(), SpikeGuard(factor=5, memory=3)
    fit(Line(bad=[2], value=1000.0), tmp_path, guard, seen, steps=3)
    assert guard.skipped == 0 and not same(seen.weights[1], seen.weights[0])


def test_guards_remember_across_a_resume():
    first, second = SpikeGuard(), SpikeGuard()
    first.mean, first.seen, first.skipped, first.in_a_row = torch.tensor(2.0), torch.ones(()), 3, 1
    second.load_state_dict(first.state_dict())
    assert (second.mean, second.seen, second.skipped, second.in_a_row) == (2.0, 1.0, 3, 1)
    for wrong in ({"factor": 1.0}, {"memory": 0}, {"patience": 0}):
        with pytest.raises(UserError):
            SpikeGuard(**wrong)
