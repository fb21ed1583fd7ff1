"""The Makefile's own promises: what it lists, and bad input that stops before any set-up."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGETS = (
    "help setup train-encoder train-decoder train-stage1 train-stage2 train-stage3 train-edits "
    "train-joint demo app pretrain-tiny parity bench bench-data bench-generate bench-serve "
    "attack torture study test test-slow test-sweep test-portable lint audit clean"
).split()


@pytest.fixture
def make(tmp_path):
    """Runs make in a bare folder that holds the Makefile and the presets, and no environment."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in ("model", "recipes", "trainer"):
        shutil.copytree(ROOT / "conf" / folder, tmp_path / "conf" / folder)
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    # The variables of a make around this test are not the user's.
    ours = ("MAKE", "MFLAGS", "ARGS", "PRESET", "TRAINER", "DATA", "PYTHON", "CASES", "SEED")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["make", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )

    return run


def refused(result: subprocess.CompletedProcess, folder: Path) -> str:
    """The one sentence with which make refused, having done nothing."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert not (folder / ".venv").exists()
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("words", [(), ("help",)])
def test_help_lists_every_target(make, words):
    result = make(*words)
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[: len(TARGETS)]] == TARGETS


def test_unknown_preset_names_the_known_ones(make, tmp_path):
    line = refused(make("train-stage2", "PRESET=tinny"), tmp_path)
    assert "'tinny' is unknown" in line and "tiny" in line.split("one of:")[1]


def test_unknown_trainer_names_the_known_ones(make, tmp_path):
    line = refused(make("train-stage2", "TRAINER=fsdp3"), tmp_path)
    assert "'fsdp3' is unknown" in line and "ddp fsdp1 fsdp2 single" in line


def test_a_folder_of_cases_that_is_not_there(make, tmp_path):
    assert "'nowhere' does not exist" in refused(make("parity", "CASES=nowhere"), tmp_path)


def test_empty_preset(make, tmp_path):
    assert "is unknown" in refused(make("train-stage1", "PRESET="), tmp_path)


def test_missing_data_folder(make, tmp_path):
    line = refused(make("train-stage2", "DATA=no/such folder"), tmp_path)
    assert "'no/such folder' does not exist" in line


def test_data_folder_without_shards(make, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "picture.jpg").touch()
    line = refused(make("train-stage2", "DATA=mine"), tmp_path)
    assert "'mine' holds no WebDataset shard" in line


@pytest.mark.parametrize("shard", ["A.TAR", "sub/folder/a.tar", "sub/a.Tar"])
def test_shards_in_sub_folders_and_in_capitals_are_data(shard, trained, tmp_path):
    (tmp_path / "mine" / "a.tar").unlink()
    path = tmp_path / "mine" / shard
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert "--data.shards=mine" in trained("train-stage2")


def test_python_that_is_not_there(make, tmp_path):
    result = make("setup", "PYTHON=no-such-python")
    assert result.returncode == 2
    assert "set-up needs Python 3.11 or newer" in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def trained(make, tmp_path):
    """Runs a training target with data, and says what a stand-in interpreter was told."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.tar").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    stamp = tmp_path / ".venv" / ".set-up"
    stamp.touch()
    os.utime(stamp, (2**31, 2**31))

    def run(*words: str) -> str:
        result = make(*words, "DATA=mine")
        assert result.returncode == 0
        return result.stdout.splitlines()[-1]

    return run


def test_training_command_is_the_plain_one(trained):
    """Three configs, the data, ARGS last."""
    assert trained("train-stage2", "ARGS=--trainer.max_steps=3 --model.seed=1") == (
        "-P -m triptych fit --config conf/base.yaml --config conf/model/tiny.yaml "
        "--config conf/stage2.yaml --config conf/data/folder.yaml --data.shards=mine "
        "--trainer.max_steps=3 --model.seed=1"
    )


def test_a_trainer_comes_after_the_recipe_and_before_the_data(trained):
    assert trained(
        "train-stage2", "PRESET=blip3o_8b", "TRAINER=ddp", "ARGS=--trainer.devices=2"
    ) == (
        "-P -m triptych fit --config conf/base.yaml --config conf/model/blip3o_8b.yaml "
        "--config conf/stage2.yaml --config conf/recipes/blip3o_8b/stage2.yaml "
        "--config conf/trainer/ddp.yaml --config conf/data/folder.yaml --data.shards=mine "
        "--trainer.devices=2"
    )


@pytest.mark.parametrize("preset", ["blip3o_4b", "blip3o_8b", "siglip2_sana"])
def test_a_recipe_of_the_preset_comes_after_the_stage_and_before_the_data(trained, preset):
    assert trained("train-stage2", f"PRESET={preset}", "ARGS=--model.seed=1") == (
        f"-P -m triptych fit --config conf/base.yaml --config conf/model/{preset}.yaml "
        f"--config conf/stage2.yaml --config conf/recipes/{preset}/stage2.yaml "
        "--config conf/data/folder.yaml --data.shards=mine --model.seed=1"
    )
