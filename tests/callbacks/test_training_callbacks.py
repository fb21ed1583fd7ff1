"""The callbacks that follow the numbers of a training: EMA, guards, norms, checks, throughput."""

import csv
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import data, unified
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file
from tolerances import same
from torch import nn
from torch.utils.data import DataLoader

from triptych.callbacks import (
    EMA,
    Checkpoint,
    FlowLossByNoise,
    FrozenCheck,
    GradientNorms,
    NonFiniteGuard,
    ProgressBar,
    RunSummary,
    SpikeGuard,
    Throughput,
)
from triptych.callbacks.frozen_check import checksum
from triptych.callbacks.guards import Step
from triptych.training.device_peaks import dense_peak
from triptych.training.flop_counter import step_flops
from triptych.utils.errors import UserError
from triptych.utils.rng import normal


class Samples:
    """Stand-in for a Batch: numbers [B], and the names of their samples."""

    def __init__(self, numbers):
        self.keys = [f"sample-{n}" for n in numbers]
        self.numbers = torch.tensor(numbers, dtype=torch.float32)

    def __len__(self):
        return len(self.keys)


class Loader:
    """Batches of two of the numbers 0 to 39, in order; goes on where a checkpoint was made."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return 20

    def __iter__(self):
        while self.next < len(self):
            self.next += 1
            yield Samples([2 * self.next - 2, 2 * self.next - 1])

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Numbers(LightningDataModule):
    def train_dataloader(self):
        return Loader()

    def val_dataloader(self):
        return DataLoader(range(2), batch_size=2, collate_fn=Samples)


class Line(LightningModule):
    """Two layers that train, one that is frozen; `value` times the loss in the steps `bad`.

    Steps are counted from 1. `of_gradient`: not the loss is bad in these steps, but its gradient.
    """

    def __init__(self, bad=(), value=float("nan"), fused=True, of_gradient=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.trained = {n for n, p in self.named_parameters() if p.requires_grad}
        self.bad, self.value, self.fused, self.of_gradient = set(bad), value, fused, of_gradient
        self.losses = []

    def trained_state(self):
        return {n: p for n, p in self.named_parameters() if n in self.trained}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        x = batch.numbers[:, None] / 40
        loss = (self.second(torch.tanh(self.first(x))) - self.frozen(x)).square().mean()
        if batch_idx + 1 in self.bad and self.of_gradient:  # sqrt at 0: the loss is finite
            loss = loss + (self.second.bias - self.second.bias.detach()).sqrt().sum()
        elif batch_idx + 1 in self.bad:
            loss = loss * self.value
        self.log("train/loss", loss, prog_bar=True)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad], lr=0.05, fused=self.fused
        )


class Snapshots(Callback):
    """Everything that a step may change, after each of them."""

    def __init__(self):
        self.weights, self.optimizer, self.average = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(snapshot(module))
        states = trainer.optimizers[0].state_dict()["state"]
        self.optimizer.append({(n, k): v.clone() for n, s in states.items() for k, v in s.items()})
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                self.average.append({n: t.clone() for n, t in callback.average.items()})


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def fit(model, folder, *callbacks, steps=6, every=1, datamodule=None, ckpt_path=None, **options):
    options = {"enable_progress_bar": False, **options}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=every,
        logger=CSVLogger(folder, None, "run"),
        callbacks=list(callbacks),
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        num_sanity_val_steps=0,
        **options,
    )
    datamodule = datamodule or Numbers()
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def logged(folder, name):
    """step -> value of a column of the run's metrics.csv."""
    rows = csv.DictReader((Path(folder) / "run/metrics.csv").open())
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


# --- EMA ------------------------------------------------------------------------------------------


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


# --- guards ---------------------------------------------------------------------------------------


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


# --- GradientNorms --------------------------------------------------------------------------------


def test_gradient_norms_of_each_part_before_clipping(tmp_path):
    class Norms(Callback):
        def __init__(self):
            self.seen = {}

        def on_before_optimizer_step(self, trainer, module, optimizer):
            grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
            self.seen[trainer.global_step] = grads

    norms = Norms()
    fit(Line(), tmp_path, GradientNorms(), norms, every=2, gradient_clip_val=1e-3)
    for part in ("first", "second", "all"):
        found = logged(tmp_path, f"grad_norm/{part}")
        assert list(found) == [1, 3, 5]
        for step, value in found.items():
            chosen = [g for n, g in norms.seen[step].items() if part in (n.split(".")[0], "all")]
            expected = torch.cat([g.flatten() for g in chosen]).double().norm().item()
            assert value == pytest.approx(expected, rel=1e-5) and value > 1e-3


def test_parts_are_named_as_people_name_them(tmp_path, shapes_folder, weights):
    fit(
        unified("stage2", weights=weights),
        tmp_path,
        GradientNorms(),
        steps=1,
        datamodule=data(shapes_folder),
    )
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    shown = {name for name in header if name.startswith("grad_norm/")}
    assert shown == {f"grad_norm/{p}" for p in ("generation.queries", "generation.dit", "all")}


def test_the_progress_bar_reads_the_loss_in_logged_steps_only(tmp_path):
    class Shown(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, module, *_):
            self.losses.append(bar.get_metrics(trainer, module)["train/loss"])

    bar, shown, model = ProgressBar(), Shown(), Line()
    fit(model, tmp_path, bar, shown, every=3, enable_progress_bar=True)
    first, third, sixth = (pytest.approx(model.losses[n], rel=1e-6) for n in (0, 2, 5))
    assert shown.losses == [first, first, third, third, third, sixth]


# --- FLOPs, Throughput, RunSummary ----------------------------------------------------------------


class Chain(LightningModule):
    """Parts whose FLOPs are easily written down: 8 -> 16, 16 -> 32 frozen, 32 -> 4."""

    def __init__(self, wait=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Sequential(nn.Linear(32, 4), nn.ReLU())
        self.middle = nn.Linear(16, 32).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.trained = {n for n, p in self.named_parameters() if p.requires_grad}
        self.wait, self.steps = wait, 0

    def trained_state(self):
        return {n: p for n, p in self.named_parameters() if n in self.trained}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def step(self, batch):
        self.steps += 1
        inputs = self.norm(batch.numbers[:, None].expand(-1, 8) + torch.rand(len(batch), 8))
        return self.last(self.middle(self.first(inputs))).sum(), {}

    def training_step(self, batch, batch_idx):
        time.sleep(self.wait)
        return self.step(batch)[0]

    def validation_step(self, batch, batch_idx):
        time.sleep(10 * self.wait)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], fused=True)


class Counts(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.flops = step_flops(trainer, module, batch)


# a sample forward; backward once for the inputs, if they want a gradient, and once for the weights
FORWARD = {"first": 2 * 8 * 16, "middle": 2 * 16 * 32, "last": 2 * 32 * 4}
BACKWARD = {"first": 2 * 2 * 8 * 16, "middle": 2 * 16 * 32, "last": 2 * 2 * 32 * 4}


def test_flops_of_each_part_match_the_formulas(tmp_path):
    model, counts = Chain(), Counts()
    fit(model, tmp_path, counts, steps=3)
    flops = counts.flops
    assert flops.samples == 2 and model.steps == 4  # one of them was thrown away
    assert {name: n // 2 for name, n in flops.forward.items()} == FORWARD
    assert {name: n // 2 for name, n in flops.backward.items()} == BACKWARD
    assert flops.per_sample == sum(FORWARD.values()) + sum(BACKWARD.values())


def test_counting_leaves_no_trace(tmp_path):
    plain, counted = Chain(), Chain()
    torch.manual_seed(1)
    fit(plain, tmp_path / "plain", steps=3)
    torch.manual_seed(1)
    fit(counted, tmp_path / "counted", Throughput(), RunSummary(), steps=3)
    assert counted.steps == 4 and same(snapshot(plain), snapshot(counted))
    assert torch.equal(plain.norm.running_mean, counted.norm.running_mean)


def test_compiled_parts_are_counted_too(tmp_path):
    model, counts = Chain(), Counts()
    model.first.compile(backend="eager")
    fit(model, tmp_path, counts, steps=1)
    assert counts.flops.forward["first"] == 2 * FORWARD["first"]


def test_throughput_counts_only_training(tmp_path):
    model = Chain(wait=0.02)
    callback = Throughput()
    fit(model, tmp_path, callback, steps=6, every=3, val_check_interval=2)
    speeds = logged(tmp_path, "throughput/samples_per_s")
    assert list(speeds) == [2, 5]
    assert all(30 < speed < 2 / 0.02 for speed in speeds.values())  # validation took 0.2 s
    flops = logged(tmp_path, "throughput/tflops_per_device")
    for step, speed in speeds.items():
        per_sample = sum(FORWARD.values()) + sum(BACKWARD.values())
        assert flops[step] == pytest.approx(speed * per_sample / 1e12, rel=1e-6)
    assert not logged(tmp_path, "throughput/mfu")  # nobody knows a CPU's peak
    assert not logged(tmp_path, "throughput/tokens_per_s")


def test_tokens_are_those_of_the_prompts_without_padding(tmp_path, shapes_folder, weights):
    class Tokens(Callback):
        number, time = 0, 0.0

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.number += int(batch.attention_mask.sum())
            self.samples = len(batch) + getattr(self, "samples", 0)

    tokens = Tokens()
    fit(
        unified("stage2", weights=weights),
        tmp_path,
        Throughput(),
        tokens,
        steps=2,
        every=2,
        datamodule=data(shapes_folder),
    )
    (per_second,) = logged(tmp_path, "throughput/tokens_per_s").values()
    (samples,) = logged(tmp_path, "throughput/samples_per_s").values()
    assert per_second / samples == pytest.approx(tokens.number / tokens.samples, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_peaks_are_dense_and_not_taken_from_a_namesake(name, peak):
    assert dense_peak(name) == peak


def test_summary_before_the_first_step(tmp_path, capsys):
    fit(Chain(), tmp_path, EMA(), RunSummary(), steps=5, accumulate_grad_batches=2)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["part"] == ["part", "trained", "frozen", "dtype", "memory", "forward", "backward"]
    assert rows["first"] == [
        "first",
        "144",
        "-",
        "float32",
        "576",
        "B",
        "256",
        "FLOP",
        "512",
        "FLOP",
    ]
    assert rows["middle"][1:4] == ["-", "544", "float32"]
    trained, frozen = 144 + 132 + 16, 544
    size = 4 * (trained + frozen + trained + 2 * trained + trained)
    assert rows["all"][1:3] == [str(trained), str(frozen)]
    assert f"without activations: {size / 1000:.3g} kB" in "\n".join(lines)
    total = (sum(FORWARD.values()) + sum(BACKWARD.values())) * 5 * 4
    assert f"to do: 5 steps of 4 samples, 3.58 kFLOP a sample, {total / 1000:.3g} kFLOP" in (
        "\n".join(lines)
    )
    assert "GPU-days" not in "\n".join(lines)


def test_summary_estimates_time_for_known_devices(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("triptych.callbacks.run_summary.device_name", lambda _: "NVIDIA H200")
    fit(Chain(), tmp_path, RunSummary(mfu=0.5), steps=5)
    assert "GPU-days if 50% of the dense bfloat16 peak (989 TFLOP/s)" in capsys.readouterr().out


def test_summary_of_stage_2_names_its_parts(tmp_path, shapes_folder, weights, capsys):
    model = unified("stage2", weights=weights)
    fit(model, tmp_path, RunSummary(), steps=1, datamodule=data(shapes_folder))
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    wanted = ("understanding.vlm", "encoder", "generation.queries", "generation.dit")
    assert set(wanted) < set(rows)
    assert rows["encoder"].split()[-1] == "-"  # no gradient goes through it
    assert rows["generation.dit"].count("FLOP") == 2
    assert rows["understanding.vlm"].count("FLOP") == 2  # of the queries


# --- FlowLossByNoise ------------------------------------------------------------------------------


def test_flow_loss_by_noise_is_the_loss_at_that_time(tmp_path, shapes_folder, weights):
    model, seen = unified("stage2", weights=weights), []
    source = data(shapes_folder)

    class Batches(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
            with torch.no_grad():
                seen.append((len(batch), [reference(module, batch, t) for t in (0.25, 1.0)]))

    trainer = fit(
        model,
        tmp_path,
        FlowLossByNoise((0.25, 1.0)),
        Batches(),
        steps=1,
        datamodule=source,
        val_check_interval=1,
    )
    total = sum(size for size, _ in seen)
    for number, name in enumerate(("val/flow/t=0.25", "val/flow/t=1")):
        expected = sum(size * losses[number] for size, losses in seen) / total
        (value,) = logged(tmp_path, name).values()
        assert value == pytest.approx(expected, rel=1e-5)
    before = trainer.callback_metrics["val/flow/t=0.25"]
    trainer.validate(model, datamodule=source, verbose=False)
    assert trainer.callback_metrics["val/flow/t=0.25"] == before  # the same noises again


def reference(module, batch, t):
    """The flow loss written out, of weights as they are."""
    features = module.encoder(batch.target_pixels)
    noise = normal(features.shape[1:], 0, "loss-at", batch.sample_ids)
    states = module.understanding.vlm.condition(
        batch.input_ids, batch.attention_mask, module.generation.queries
    ).hidden_states
    x_t = (1 - t) * features + t * noise
    times = torch.full((len(batch),), t, dtype=torch.float64)
    velocity = module.generation.dit(x_t, times, states)
    return (velocity - (noise - features)).square().mean().item()


def test_flow_loss_is_skipped_without_a_generation_loss(tmp_path, caplog):
    fit(Line(), tmp_path, FlowLossByNoise())
    assert caplog.text.count("FlowLossByNoise steps aside: the stage has no generation loss") == 1
    for wrong in ({"times": (0.0,)}, {"times": ()}, {"batches": 0}):
        with pytest.raises(UserError):
            FlowLossByNoise(**wrong)


# --- FrozenCheck ----------------------------------------------------------------------------------


class Writes(Callback):
    """Changes one element of a frozen tensor after a step."""

    def __init__(self, step, amount):
        self.step, self.amount = step, amount

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.frozen.weight[0, 0] += self.amount


@pytest.mark.parametrize(("step", "found"), [(1, 2), (3, 4), (5, 5)])
def test_a_frozen_tensor_that_changes_ends_the_run(tmp_path, step, found):
    check = FrozenCheck(every_n_steps=2)
    with pytest.raises(UserError, match=rf"frozen\.weight is frozen.* step {found}, with 0 other"):
        fit(Line(), tmp_path, Writes(step, 1e-6), check, steps=5)


def test_frozen_tensors_that_stay_end_nothing(tmp_path):
    fit(Line(), tmp_path, FrozenCheck(every_n_steps=2), steps=5)
    with pytest.raises(UserError, match="1 or more"):
        FrozenCheck(every_n_steps=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_checksum_sees_every_element_and_every_exchange(dtype):
    tensor = torch.arange(64).to(dtype).reshape(8, 8)
    start = checksum(tensor)
    for place in range(64):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        assert not torch.equal(checksum(changed), start)
    exchanged = tensor.flatten()[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert not torch.equal(checksum(exchanged), start)
    assert torch.equal(checksum(tensor.clone()), start)


# --- nothing waits for the device -----------------------------------------------------------------


class OnMeta(LightningModule):
    """On the meta device, which has no numbers: whoever reads one gets an error."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(3, 3)
        for parameter in self.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.shown = {}

    @property
    def device(self):
        return torch.device("meta")

    def log_dict(self, values, **_):
        self.shown |= values


@pytest.mark.parametrize(
    "callback",
    [NonFiniteGuard, SpikeGuard, EMA, GradientNorms, Throughput],
    ids=lambda c: c.__name__,
)
def test_a_step_that_is_not_logged_reads_nothing_from_the_device(callback):
    module, callback = OnMeta(), callback()
    group = {"params": list(module.parameters())}
    optimizer = SimpleNamespace(
        param_groups=[group],
        _step_supports_amp_scaling=True,
        register_step_post_hook=lambda hook: hooks.append(hook),
    )
    hooks = []
    trainer = SimpleNamespace(
        global_step=0,
        log_every_n_steps=4,
        optimizers=[optimizer],
        world_size=1,
        global_rank=0,
        precision_plugin=None,
        strategy=SimpleNamespace(),
    )
    mask = torch.ones(2, 3, device="meta")
    batch = type(
        "Sized", (), {"__len__": lambda _: 2, "attention_mask": mask, "keys": ["a", "b"]}
    )()
    callback.on_train_start(trainer, module)
    for _ in range(3):
        callback.on_train_batch_start(trainer, module, batch, 0)
        callback.on_before_backward(trainer, module, torch.ones((), device="meta"))
        callback.on_before_optimizer_step(trainer, module, optimizer)
        for hook in hooks:
            hook(optimizer)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    if isinstance(callback, (NonFiniteGuard, SpikeGuard)):
        assert optimizer.found_inf.device.type == "meta"
    if isinstance(callback, GradientNorms):  # the logger will read it
        callback.on_before_optimizer_step(trainer, module, optimizer)
        assert module.shown["grad_norm/layer"].device.type == "meta"


def test_a_logged_step_reads_the_flags():
    guard, module = NonFiniteGuard(), OnMeta()
    trainer = SimpleNamespace(global_step=4, log_every_n_steps=4, optimizers=[])
    guard._unread = [Step(4, ["a"], torch.ones((), device="meta") > 0)]
    with pytest.raises(NotImplementedError, match="meta"):
        guard.on_train_batch_start(trainer, module, None, 0)
