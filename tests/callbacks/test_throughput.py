"""FLOPs, samples a second, and the summary of a run."""

import time

import pytest
import torch
from builders import data, unified
from lightning import Callback, LightningModule
from line_model import fit, logged, snapshot
from tolerances import same
from torch import nn

from triptych.callbacks import (
    EMA,
    RunSummary,
    Throughput,
)
from triptych.training.device_peaks import dense_peak
from triptych.training.flop_counter import step_flops


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
