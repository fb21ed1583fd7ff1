"""A published release through the real command line: convert, draw, answer, train, convert back.

The release is one in small under the true names; every command is a process of its own, all but the
first a fork of a warm one.
"""

import csv

import commands
import numpy as np
import published_release as published
import pytest
import torch
from builders import ROOT
from PIL import Image
from safetensors.torch import load_file

from triptych.checkpoints import read_metadata

pytestmark = pytest.mark.slow

CONF = ROOT / "conf"
MODEL = "weights/small/model.yaml"
QUICK = ["--model.decoding.decoder.sampling.num_inference_steps=1"]


@pytest.fixture(scope="module")
def run(forks):
    """Runs `triptych` in a folder; returns its output, or its error if `status` is not 0."""

    def run(folder, *arguments, status=0):
        done = forks.run(folder, *arguments)
        assert done.returncode == status, done.stderr[-3000:]
        return done.stderr if status else done.stdout

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a release, `hub`, and what `triptych convert` made of it, `weights/small`."""
    folder = tmp_path_factory.mktemp("published")
    published.released(folder / "hub")
    done = commands.run(folder, "convert", "hub", "weights/small")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("model.yaml names its files.")
    return folder


def test_the_converted_model_makes_images(small, run):
    prompts = ["a red circle", "two blue squares"]
    flags = ["--num-inference-steps", 2, "--config", MODEL, *QUICK, "--model.encoder.heads=2"]
    lines = [line.split("\t") for line in run(small, "generate", *prompts, *flags).splitlines()]
    assert [prompt for _, prompt in lines] == prompts
    first, second = (np.asarray(Image.open(small / path)) for path, _ in lines)
    assert first.shape == second.shape == (16, 16, 3)
    assert first.std() > 0 and (first != second).any()


def test_the_converted_model_answers(small, run):
    Image.new("RGB", (40, 30), (200, 0, 0)).save(small / "red.png")
    flags = ["--config", MODEL, "--model.encoder.heads=2"]
    assert run(small, "chat", "red.png", "what colour is it?", *flags).strip()


def test_stage_2_trains_from_the_converted_model(small, run, shapes_folder):
    # as `make train-stage2 DATA=FOLDER` has them
    names = ["base", "stages/stage2", "recipes/published/stage2", "data/folder"]
    files = [CONF / f"{name}.yaml" for name in names]
    files.insert(1, MODEL)
    trainer = {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": "false"}
    run(
        small,
        "fit",
        *(word for file in files for word in ("--config", file)),
        *(f"--trainer.{name}={value}" for name, value in trainer.items()),
        f"--data.shards={shapes_folder / 'train'}",
        *("--data.batch_size=2", "--data.num_val_samples=2"),
        *("--model.generation.sampling.num_inference_steps=2", *QUICK),
    )
    results = small / "runs" / "small" / "stage2" / "version_0"
    rows = list(csv.DictReader((results / "metrics.csv").open()))
    for name, number in (("train/loss", 2), ("val/loss", 1)):
        losses = [float(row[name]) for row in rows if row.get(name)]
        assert len(losses) == number and all(0 < loss < 1e4 for loss in losses)
    trained = load_file(results / "weights.safetensors")
    converted = load_file(small / "weights/small/generation.safetensors")
    assert {n: t.shape for n, t in trained.items()} == {n: t.shape for n, t in converted.items()}
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert read_metadata(results / "weights.safetensors")["steps"] == "2"
    last = torch.load(results / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["triptych"] == {"preset": "small", "stage": "stage2"}


def test_converted_back_it_is_the_release_again_byte_for_byte(small, run):
    run(small, "convert", MODEL, "back")
    released = sorted(path.relative_to(small / "hub") for path in (small / "hub").rglob("*.safe*"))
    assert len(released) == 3 + 1 + 2  # shards, their index, UNet and VAE
    for path in released:
        assert (small / "back" / path).read_bytes() == (small / "hub" / path).read_bytes(), path


@pytest.mark.parametrize(
    ("status", "says", "words"),
    [
        (
            2,
            "at least 1 step, not 0",
            ["--config", MODEL, "--model.decoding.decoder.sampling.num_inference_steps=0"],
        ),
        (1, "nowhere.yaml does not exist; check the path", ["--config", "nowhere.yaml"]),
        (2, "unrecognized arguments: --sead=7", ["--config", MODEL, "--sead=7"]),
    ],
)
def test_bad_input_is_one_sentence(status, says, words, small, run):
    lines = run(small, "generate", "a cat", *words, "--out", "none", status=status).splitlines()
    said = [line for line in lines if not line.startswith("  or: ")]  # what the parser tried too
    assert said[-1].startswith("triptych") and says in said[-1]
    assert not any("Traceback" in line for line in said) and not (small / "none").exists()
    assert len(said) == 1 or says.startswith("unrecognized")  # argparse adds the usage


def test_existing_export_target_is_not_overwritten(small, run):
    before = (small / MODEL).read_bytes()
    said = run(small, "convert", "hub", "weights/small", status=1)
    assert said.count("\n") == 1 and "weights/small" in said and "Traceback" not in said
    assert (small / MODEL).read_bytes() == before
