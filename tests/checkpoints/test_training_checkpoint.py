"""Outputs of a run, and resuming from them: checkpoints and weight files."""

import errno
import os
import re
import signal
import sys
from pathlib import Path

import commands
import pytest
import torch
from builders import CAPTIONS, data, needed, unified
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from tolerances import assert_close, assert_same_images
from torch.distributed import checkpoint as sharded_files

from triptych.callbacks import EMA, Checkpoint, ExportWeights
from triptych.checkpoints import WeightFiles, atomic_checkpoint, read_metadata, save_weights
from triptych.cli.checkpoints import export
from triptych.inference.model_inference import inference_of
from triptych.utils.errors import UserError

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
    callbacks=[Checkpoint(every_n_train_steps=2), Told()],
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(Model(), ckpt_path=resumed[0] if resumed else None, weights_only=True)
"""


class Told(Callback):
    """A signal to this process in the step after `at`."""

    def __init__(self, at, number=signal.SIGTERM):
        self.at, self.number = at, number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), self.number)


class Failing(Callback):
    """A failure in one hook, in the step after `at`."""

    def __init__(self, hook, at):
        self.at = at
        setattr(self, hook, self.fail)

    def fail(self, trainer, *_):
        if trainer.global_step == self.at:
            raise ZeroDivisionError


def fit(
    model,
    shapes,
    folder,
    steps=6,
    ckpt_path=None,
    stage="stage2",
    callbacks=(),
    checkpoint=None,
    **settings,
):
    """A fit with a checkpoint every 3 steps; leaves everything in folder/runs/version_0."""
    trainer = Trainer(
        **{
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": CSVLogger(folder, name="runs"),
            "callbacks": [
                checkpoint or Checkpoint(every_n_train_steps=3, save_top_k=-1),
                ExportWeights(),
                *callbacks,
            ],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "gradient_clip_val": 1.0,
            **settings,
        }
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


def test_checkpoint_holds_only_trained_tensors_and_plain_data(run):
    model, folder = run
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(last["state_dict"], trained(model))
    assert all(name.startswith("generation.") for name in last["state_dict"])
    assert last["global_step"] == 6
    assert last["triptych"] == {"preset": "small", "stage": "stage2"}
    size = sum(p.numel() for n, p in model.named_parameters() if n in model.trained)
    held = sum(t.numel() for s in last["optimizer_states"][0]["state"].values() for t in s.values())
    assert 2 * size <= held < 2.01 * size
    assert (folder / "checkpoints" / "last.ckpt").stat().st_size <= 16 * size + 1e6


def test_a_checkpoint_names_the_seed_and_the_frozen_weights(run, weights):
    model, folder = run
    made = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["run"]
    assert made["seed"] == model.seed == 0
    assert {label: note["file"] for label, note in made["base"].items()} == {
        label: Path(getattr(weights, label)).name
        for label in ("understanding", "encoder", "vae", "decoder")
    }
    assert all(len(note["sha256"]) == 64 for note in made["base"].values())


@pytest.mark.parametrize("background", [False, True])
def test_last_is_a_link_and_old_ones_go_when_the_new_one_is_whole(
    background, shapes_folder, weights, tmp_path
):
    checkpoint = Checkpoint(every_n_train_steps=1, save_async=background)
    model = fit(unified("stage2", weights=weights), shapes_folder, tmp_path, checkpoint=checkpoint)
    folder = tmp_path / "runs" / "version_0" / "checkpoints"
    assert os.readlink(folder / "last.ckpt") == "00000006.ckpt"
    names = {path.name for path in folder.iterdir()}
    whole = {f"0000000{step}.ckpt{end}" for step in (5, 6) for end in ("", ".json")}
    assert names == whole | {"last.ckpt"}
    last = atomic_checkpoint.latest([tmp_path / "runs"])
    assert same(torch.load(last, weights_only=True)["state_dict"], trained(model))
    with pytest.raises(UserError, match="save_top_k is 1, but a single one may be damaged"):
        Checkpoint(save_top_k=1)


def test_resuming_is_bit_identical(run, shapes_folder, weights, tmp_path):
    model, folder = run
    middle = folder / "checkpoints" / "00000003.ckpt"
    before = torch.load(middle, weights_only=True)["state_dict"]
    assert not same(before, trained(model))
    resumed = fit(unified("stage2", weights=weights), shapes_folder, tmp_path, 6, middle)
    assert same(trained(resumed), trained(model))


class Stopping(Callback):
    """Ends the run in one hook of step `at`, as EarlyStopping does."""

    def __init__(self, hook, at):
        self.at = at
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.at


@pytest.mark.parametrize(
    ("hook", "settings"),
    [
        (None, {}),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (None, {"max_epochs": 1, "limit_train_batches": 6}),
                ("on_train_batch_end", {"max_steps": 8}),
                ("on_validation_end", {"max_steps": 8}),
                ("on_train_epoch_end", {"max_steps": 8, "limit_train_batches": 6}),
            )
        ),
    ],
)
def test_the_last_step_is_saved_like_any_other(hook, settings, shapes_folder, weights, tmp_path):
    """A run of 8 steps that ends after 6 goes on as from the checkpoint of its step 6."""
    validate = {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    settings = {**validate, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings}

    def run(name, every, stops=(), steps=6, **more):
        model = unified("stage2", weights=weights)
        checkpoint = Checkpoint(every_n_train_steps=every, save_top_k=-1)
        more = {"callbacks": stops, "checkpoint": checkpoint, **settings, **more}
        fit(model, shapes_folder, tmp_path / name, steps, **more)
        folder = tmp_path / name / "runs" / "version_0" / "checkpoints"
        return model, folder / "00000006.ckpt"

    stops = () if hook is None else (Stopping(hook, 6),)
    _, last = run("ended", 1000, stops)
    _, same_step = run("periodic", 2, stops)
    assert atomic_checkpoint.latest([last.parent.parent.parent]) == last
    assert os.readlink(last.parent / "last.ckpt") == last.name
    ended, periodic = (torch.load(path, weights_only=True) for path in (last, same_step))
    assert ended["run"].pop("row") == {} and periodic["run"].pop("row") is not None
    on = {"max_steps": 8, "max_epochs": -1, "limit_train_batches": 8}
    further = [
        run(path.parent.parent.parent.parent.name + "_on", 2, (), 8, ckpt_path=path, **on)
        for path in (last, same_step)
    ]
    assert same(*(trained(model) for model, _ in further))
    assert rows(tmp_path / "ended_on") == rows(tmp_path / "periodic_on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_that_resumes(number, run, shapes_folder, weights, tmp_path):
    model, _ = run
    if number == signal.SIGINT:  # a job of a shell in the background is deaf to it
        signal.signal(number, signal.default_int_handler)
    told = Told(4, number)
    with pytest.raises(SystemExit):
        fit(unified("stage2", weights=weights), shapes_folder, tmp_path, callbacks=[told])
    folder = tmp_path / "runs" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5
    assert not (folder / "weights.safetensors").exists()
    resumed = fit(unified("stage2", weights=weights), shapes_folder, tmp_path / "b", 6, last)
    assert same(trained(resumed), trained(model))


def rows(folder):
    return (folder / "runs" / "version_0" / "metrics.csv").read_text()


def test_signals_between_the_batches_of_one_step_end_the_run_after_it(
    shapes_folder, weights, tmp_path
):
    """A save in between loses the gradients of the first batch, and the count of batches is off."""
    settings = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}

    def run(name, *callbacks, **more):
        model = unified("stage2", weights=weights)
        return fit(
            model, shapes_folder, tmp_path / name, 5, callbacks=callbacks, **more, **settings
        )

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("told", Told(3))
    last = tmp_path / "told" / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert same(trained(run("on", ckpt_path=last)), trained(whole))
    assert rows(tmp_path / "on") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("hook", "left"),
    [
        ("on_train_batch_start", 4),  # before the step: its state is that of the one before
        ("on_before_optimizer_step", 4),
        ("on_validation_start", 4),
        ("on_validation_end", 4),
        ("on_train_batch_end", 3),  # in the middle of a step
    ],
)
def test_failed_step_keeps_the_last_exact_state(
    hook, left, validated, shapes_folder, weights, tmp_path
):
    """Weights and log are those of a run that did not fail, also where a validation broke off."""
    whole, log, settings = validated
    with pytest.raises(ZeroDivisionError):
        fit(
            unified("stage2", weights=weights),
            shapes_folder,
            tmp_path / "a",
            callbacks=[Failing(hook, 4)],
            **settings,
        )
    last = tmp_path / "a" / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == left
    model = unified("stage2", weights=weights)
    fit(model, shapes_folder, tmp_path / "b", ckpt_path=last, **settings)
    assert same(trained(model), trained(whole))
    assert rows(tmp_path / "b") == log


@pytest.fixture(scope="module")
def validated(shapes_folder, weights, tmp_path_factory):
    """A run that validates every 2 steps: the model, its log, and the settings."""
    folder = tmp_path_factory.mktemp("validated")
    settings = {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    settings |= {"log_every_n_steps": 1, "num_sanity_val_steps": 0}
    model = fit(unified("stage2", weights=weights), shapes_folder, folder, **settings)
    return model, rows(folder), settings


def test_a_disk_that_fills_up_ends_the_run_with_its_last_state(
    shapes_folder, weights, tmp_path, monkeypatch
):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 4:  # a save takes four
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"00000006\.ckpt could not be written \(No space left"):
        fit(unified("stage2", weights=weights), shapes_folder, tmp_path)
    folder = tmp_path / "runs" / "version_0" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000003.ckpt",
        "00000003.ckpt.json",
        "last.ckpt",
    ]
    assert atomic_checkpoint.latest([tmp_path / "runs"]) == folder / "00000003.ckpt"


def test_resumed_run_finds_its_checkpoint(run, tmp_path):
    from triptych.cli.lightning import find_checkpoint

    _, folder = run
    last = folder / "checkpoints" / "last.ckpt"
    newest = str(folder / "checkpoints" / "00000006.ckpt")
    for wanted in ("last", "auto", str(last)):
        assert find_checkpoint(wanted, {folder.parent}) == newest
    assert find_checkpoint("auto", {tmp_path}) is None
    with pytest.raises(UserError, match="there is no whole checkpoint under"):
        find_checkpoint("last", {tmp_path})
    with pytest.raises(UserError, match=r"nowhere\.ckpt does not exist"):
        find_checkpoint("nowhere.ckpt", {tmp_path})
    damaged = tmp_path / "damaged.ckpt"
    atomic_checkpoint.write(damaged, lambda file: file.write(b"whole"))
    damaged.write_bytes(b"whale")
    with pytest.raises(UserError, match=r"damaged\.ckpt is damaged"):
        find_checkpoint(str(damaged), {tmp_path})


def test_unwritable_run_folder_is_refused_at_start(tmp_path):
    from triptych.checkpoints.run_folder import require_writable

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs cannot be written \(Not a directory\)"):
        require_writable(tmp_path / "file" / "runs")


@pytest.mark.slow
def test_a_sigterm_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    def steps(*words):
        """The steps that each rank had taken when it began another."""
        (tmp_path / "two.py").write_text(TWO_PROCESSES)
        done = commands.run(tmp_path, tmp_path, *words, program=(sys.executable, "two.py"))
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        said = re.findall(r"rank (\d) after (\d) steps", done.stdout)
        return [[int(step) for rank, step in said if rank == each] for each in "01"]

    # told in the second step while the other waits for its gradients: both end after the third,
    # which every=2 does not save
    assert steps("1") == [[0, 1, 2]] * 2
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
        ({"trainable": ["generation.queries"]}, r"disagree on \d+ of 1 trained tensors"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    settings, says, run, shapes_folder, weights, tmp_path
):
    _, folder = run
    options = {"stage": "stage2", **settings}
    files = needed(weights, options["stage"])
    if "trainable" in settings:  # the rest of generation is then frozen and wants weights
        files = WeightFiles(**{**vars(weights), "generation": str(folder / "weights.safetensors")})
    model = unified(**options, weights=files)
    with pytest.raises(UserError, match=says):
        fit(model, shapes_folder, tmp_path, 6, folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 7}, r"trained with the seed 0, this run has 7: .* --seed_everything=0"),
        ({"weights": "others"}, r"trained on the encoder weights .*--model\.weights\.encoder=FILE"),
    ],
)
def test_inexact_resume_is_refused(change, says, run, shapes_folder, weights, tmp_path):
    _, folder = run
    settings = {"weights": weights, **change}
    if settings["weights"] == "others":
        others = {name: t + 1 for name, t in load_file(weights.encoder).items()}
        save_weights(others, tmp_path / "encoder.safetensors", {}, torch.float32)
        files = {**vars(weights), "encoder": str(tmp_path / "encoder.safetensors")}
        settings["weights"] = WeightFiles(**files)
    with pytest.raises(UserError, match=says):
        fit(
            unified("stage2", **settings),
            shapes_folder,
            tmp_path,
            ckpt_path=folder / "checkpoints" / "last.ckpt",
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_exported_without_the_model(dtype, run, tmp_path, capsys):
    model, folder = run
    out = tmp_path / "a" / "weights.safetensors"
    last = str(folder / "checkpoints" / "last.ckpt")
    export([last, "--out", str(out), "--dtype", dtype])
    expected = {n: t.to(getattr(torch, dtype)) for n, t in trained(model).items()}
    assert same(load_file(out), expected)
    assert read_metadata(out) == {"preset": "small", "stage": "stage2", "steps": "6"}
    assert str(out) in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no EMA: .* leave --ema out"):
        export([last, "--out", str(out), "--ema"])
    with pytest.raises(UserError, match=r"nowhere\.ckpt does not exist"):
        export(["nowhere.ckpt"])
    with pytest.raises(SystemExit):
        export([last, "--out", str(out / "inside.safetensors")])
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_of_shards_is_exported(run, tmp_path):
    model, folder = run
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    path, out = tmp_path / "1.ckpt", tmp_path / "weights.safetensors"
    partial = atomic_checkpoint.temporary_path(path)
    sharded_files.save({"state_dict": content.pop("state_dict")}, checkpoint_id=partial)
    torch.save(content, partial / "meta.pt")
    with pytest.raises(UserError, match=r"1\.ckpt\.partial has no manifest: its save was cut off"):
        export([str(partial)])
    atomic_checkpoint.commit_folder(partial, path)
    export([str(path), "--out", str(out)])
    assert same(load_file(out), trained(model))
    assert read_metadata(out) == {"preset": "small", "stage": "stage2", "steps": "6"}


def test_the_average_is_exported_from_a_checkpoint(shapes_folder, weights, tmp_path):
    ema = EMA(decay=0.5)
    model = unified("stage2", weights=weights)
    fit(model, shapes_folder, tmp_path, 3, callbacks=[ema])
    out = tmp_path / "average.safetensors"
    export([str(tmp_path / "runs/version_0/checkpoints/last.ckpt"), "--ema", "--out", str(out)])
    assert same(load_file(out), ema.average) and not same(load_file(out), trained(model))


def test_exported_weights_make_the_same_images(run, weights):
    model, folder = run
    exported = folder / "weights.safetensors"
    assert read_metadata(exported) == {"preset": "small", "stage": "stage2", "steps": "6"}
    assert same(load_file(exported), trained(model))
    again = unified(
        "inference", weights=WeightFiles(**{**vars(weights), "generation": str(exported)})
    )
    again.configure_model()
    expected = inference_of(model.eval()).generate(CAPTIONS, seeds=[0, 1, 2])
    assert_same_images(inference_of(again.eval()).generate(CAPTIONS, seeds=[0, 1, 2]), expected)


def test_the_encoder_stage_exports_running_statistics_and_no_heads(shapes_folder, tmp_path):
    model = fit(unified("encoder"), shapes_folder, tmp_path, 2, stage="encoder")
    exported = load_file(tmp_path / "runs" / "version_0" / "weights.safetensors")
    assert "encoder.norm.running_mean" in exported
    assert "vae.norm.running_var" in exported
    assert not any(name.startswith("encoding.") for name in exported)
    files = WeightFiles(encoder=str(tmp_path / "runs" / "version_0" / "weights.safetensors"))
    decoder = unified("decoder", weights=files)
    decoder.configure_model()
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    model.eval(), decoder.eval()
    assert_close(model.encoder(pixels), decoder.encoder(pixels))
    assert_close(model.vae(pixels), decoder.vae(pixels))


def test_second_vae_is_refused_if_the_encoder_file_has_one(weights, tmp_path):
    both = tmp_path / "both.safetensors"
    save_weights({**load_file(weights.encoder), **load_file(weights.vae)}, both, {}, torch.float32)
    for vae in (None, str(both)):  # the file of a run that trained both, or of an older conversion
        unified("decoder", weights=WeightFiles(encoder=str(both), vae=vae)).configure_model()
    model = unified("decoder", weights=WeightFiles(encoder=str(both), vae=weights.vae))
    with pytest.raises(UserError, match=r"both.safetensors \(encoder\) holds a VAE too"):
        model.configure_model()


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
    [
        ("understanding", "stage1"),
        ("encoder", "encoder"),
        ("vae", "encoder"),
        ("decoder", "decoder"),
    ],
)
def test_error_for_missing_frozen_weights_names_the_stage(left_out, command, weights):
    model = unified("stage2", weights=WeightFiles(**{**vars(weights), left_out: None}))
    with pytest.raises(UserError, match=f"`make train-{command}` makes them") as caught:
        model.configure_model()
    assert f"--model.weights.{left_out}=FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.safetensors", "nowhere.safetensors does not exist; `make train-stage1` makes it"),
        ("broken.safetensors", r"broken.safetensors is no safetensors file .*download it again"),
        ("torch.pt", r"torch.pt is no safetensors file .*save_file, .*`triptych export`"),
        ("a_folder", "a_folder is a folder"),
    ],
)
def test_files_that_cannot_be_read_are_named(name, says, weights, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    torch.save({"queries": torch.zeros(1)}, tmp_path / "torch.pt")
    (tmp_path / "a_folder").mkdir()
    files = WeightFiles(**{**vars(weights), "understanding": str(tmp_path / name)})
    with pytest.raises(UserError, match=says):
        unified("stage2", weights=files).configure_model()
