"""What a run leaves behind, and what goes on from it: checkpoints and weight files."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from builders import CAPTIONS, data, needed, unified
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from triptych.callbacks import Checkpoint, ExportWeights
from triptych.contracts import UserError
from triptych.weights import WeightFiles, read_metadata, save_weights

TWO_PROCESSES = """
import os, signal, sys
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from triptych.callbacks import Checkpoint

folder, told_at, *resumed = sys.argv[1:]

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def train_dataloader(self):
        return DataLoader(torch.ones(64, 2))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Told(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        os.write(1, f"rank {trainer.global_rank} after {trainer.global_step} steps\\n".encode())

    def on_before_backward(self, trainer, module, loss):
        if trainer.is_global_zero and trainer.global_step == int(told_at):
            os.kill(os.getpid(), signal.SIGTERM)

Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=6,
    logger=False,
    default_root_dir=folder,
    callbacks=[Checkpoint(every=2), Told()],
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(Model(), ckpt_path=resumed[0] if resumed else None, weights_only=True)
"""


class Told(Callback):
    """A SIGTERM to this process in the step after `at`."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(model, shapes, folder, steps=6, ckpt_path=None, stage="stage2", callbacks=()):
    """A fit with a checkpoint every 3 steps; leaves everything in folder/runs/version_0."""
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=CSVLogger(folder, name="runs"),
        callbacks=[Checkpoint(every=3, keep=-1), ExportWeights(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(model, data(shapes, stage), ckpt_path=ckpt_path, weights_only=True)
    assert trainer.global_step == steps
    return model


@pytest.fixture(scope="module")
def run(shapes_folder, weights, tmp_path_factory):
    """A finished stage 2 of 6 steps: the model, and the folder of its run."""
    folder = tmp_path_factory.mktemp("stage2")
    model = fit(unified("stage2", weights=weights), shapes_folder, folder)
    return model, folder / "runs" / "version_0"


def trained(model):
    return {name: tensor.detach() for name, tensor in model.trained_state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_holds_what_trains_and_is_data_alone(run):
    model, folder = run
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(last["state_dict"], trained(model))
    assert all(name.startswith("generation.") for name in last["state_dict"])
    assert last["global_step"] == 6
    assert last["triptych"] == {"preset": "small", "stage": "stage2"}
    size = sum(p.numel() for n, p in model.named_parameters() if n in model.trained)
    held = sum(t.numel() for s in last["optimizer_states"][0]["state"].values() for t in s.values())
    assert 2 * size <= held < 2.01 * size


def test_resuming_is_bit_identical(run, shapes_folder, weights, tmp_path):
    model, folder = run
    middle = folder / "checkpoints" / "00000003.ckpt"
    before = torch.load(middle, weights_only=True)["state_dict"]
    assert not same(before, trained(model))
    resumed = fit(unified("stage2", weights=weights), shapes_folder, tmp_path, 6, middle)
    assert same(trained(resumed), trained(model))


def test_a_sigterm_leaves_a_checkpoint_that_resumes(run, shapes_folder, weights, tmp_path):
    model, _ = run
    with pytest.raises(SystemExit):
        fit(unified("stage2", weights=weights), shapes_folder, tmp_path, callbacks=[Told(4)])
    folder = tmp_path / "runs" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5
    assert not (folder / "weights.safetensors").exists()
    resumed = fit(unified("stage2", weights=weights), shapes_folder, tmp_path / "b", 6, last)
    assert same(trained(resumed), trained(model))


@pytest.mark.slow
def test_a_sigterm_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    def steps(*words):
        """The steps that each rank had taken when it began another."""
        (tmp_path / "two.py").write_text(TWO_PROCESSES)
        done = subprocess.run(
            [sys.executable, "two.py", tmp_path, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        said = re.findall(r"rank (\d) after (\d) steps", done.stdout)
        return [[int(step) for rank, step in said if rank == each] for each in "01"]

    # told in the third step, which every=2 does not save, while the other waits for its gradients
    assert steps("2") == [[0, 1, 2]] * 2
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert steps("-1", str(last)) == [[3, 4, 5]] * 2


@pytest.mark.parametrize("stage", ["stage1", "joint"])
def test_resuming_other_tasks_is_bit_identical(stage, weights, shapes_folder, tmp_path):
    """Tied embeddings, text-only samples, two tasks in one step."""
    files = needed(weights, stage)

    def model():
        return unified(stage, weights=files)

    whole = fit(model(), shapes_folder, tmp_path, 4, stage=stage)
    middle = tmp_path / "runs" / "version_0" / "checkpoints" / "00000003.ckpt"
    resumed = fit(model(), shapes_folder, tmp_path / "b", 4, middle, stage=stage)
    assert same(trained(resumed), trained(whole))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stage": "decoder"}, "checkpoint is of stage 'stage2', this run is of stage 'decoder'"),
        ({"preset": "large"}, "checkpoint is of preset 'small', this run is of preset 'large'"),
        ({"dit_sizes": {"depth": 3}}, r"disagree on \d+ of \d+ trained tensors, generation\.dit"),
        ({"dit_sizes": {"width": 32}}, r"disagree on \d+ of \d+ trained tensors, generation\.dit"),
        ({"trains": ["generation.queries"]}, r"disagree on \d+ of 1 trained tensors"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    settings, says, run, shapes_folder, weights, tmp_path
):
    _, folder = run
    options = {"stage": "stage2", **settings}
    files = needed(weights, options["stage"])
    if "trains" in settings:  # the rest of generation is then frozen and wants weights
        files = WeightFiles(**{**vars(weights), "generation": str(folder / "weights.safetensors")})
    model = unified(**options, weights=files)
    with pytest.raises(UserError, match=says):
        fit(model, shapes_folder, tmp_path, 6, folder / "checkpoints" / "last.ckpt")


def test_exported_weights_make_the_same_pictures(run, weights):
    model, folder = run
    exported = folder / "weights.safetensors"
    assert read_metadata(exported) == {"preset": "small", "stage": "stage2", "steps": "6"}
    assert same(load_file(exported), trained(model))
    again = unified(
        "inference", weights=WeightFiles(**{**vars(weights), "generation": str(exported)})
    )
    again.configure_model()
    expected = model.eval().generate(CAPTIONS, [0, 1, 2])
    assert torch.equal(again.eval().generate(CAPTIONS, [0, 1, 2]), expected)


def test_the_encoder_stage_exports_running_statistics_and_no_heads(shapes_folder, tmp_path):
    model = fit(unified("encoder"), shapes_folder, tmp_path, 2, stage="encoder")
    exported = load_file(tmp_path / "runs" / "version_0" / "weights.safetensors")
    assert "encoder.norm.running_mean" in exported
    assert "decoding.decoder.vae.norm.running_var" in exported
    assert not any(name.startswith("encoding.") for name in exported)
    files = WeightFiles(encoder=str(tmp_path / "runs" / "version_0" / "weights.safetensors"))
    decoder = unified("decoder", weights=files)
    decoder.configure_model()
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    model.eval(), decoder.eval()
    assert torch.equal(model.encoder(pixels), decoder.encoder(pixels))
    assert torch.equal(model.vae(pixels), decoder.vae(pixels))


def test_half_precision_exports_load_into_float32(run, weights, tmp_path):
    model, _ = run
    save_weights(trained(model), tmp_path / "half.safetensors", {}, torch.float16)
    assert not (tmp_path / "half.safetensors.partial").exists()
    files = WeightFiles(**{**vars(weights), "generation": str(tmp_path / "half.safetensors")})
    again = unified("inference", weights=files)
    again.configure_model()
    assert again.generation.queries.dtype == torch.float32
    assert torch.allclose(again.generation.queries, model.generation.queries, atol=2e-3)


def test_weights_of_other_sizes_are_refused(run, weights):
    _, folder = run
    exported = str(folder / "weights.safetensors")
    files = WeightFiles(**{**vars(weights), "generation": exported})
    wide = unified("stage2", weights=files, dit_sizes={"width": 32})
    with pytest.raises(UserError, match=r"generation\..* has shape \[.*64.*\], this model wants"):
        wide.configure_model()
    shallow = unified("stage2", weights=files, dit_sizes={"depth": 1})
    with pytest.raises(UserError, match=r"holds generation\.dit.*layers\.1.*does not have"):
        shallow.configure_model()


@pytest.mark.parametrize(
    ("left_out", "command"),
    [("understanding", "stage1"), ("encoder", "encoder"), ("decoder", "decoder")],
)
def test_a_frozen_part_without_weights_says_what_makes_it(left_out, command, weights):
    model = unified("stage2", weights=WeightFiles(**{**vars(weights), left_out: None}))
    with pytest.raises(UserError, match=f"`make train-{command}` makes them") as caught:
        model.configure_model()
    assert f"--model.weights.{left_out}=FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.safetensors", "nowhere.safetensors does not exist; `make train-stage1` makes it"),
        ("broken.safetensors", "broken.safetensors is no safetensors file"),
        ("a_folder", "a_folder is no safetensors file"),
    ],
)
def test_files_that_cannot_be_read_are_named(name, says, weights, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "a_folder").mkdir()
    files = WeightFiles(**{**vars(weights), "understanding": str(tmp_path / name)})
    with pytest.raises(UserError, match=says):
        unified("stage2", weights=files).configure_model()
