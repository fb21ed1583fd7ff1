"""The Makefile's own promises: what it lists, and bad input that stops before any set-up."""

import os
import shutil
import subprocess
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
TARGETS = (
    "help setup train-encoder train-decoder train-stage1 train-stage2 train-stage3 train-edits "
    "train-joint demo app pretrain-tiny parity bench bench-data bench-generate bench-serve "
    "attack torture study test test-slow test-sweep test-portable lint docs audit clean"
).split()


@pytest.fixture
def make(tmp_path):
    """Runs make in a bare folder that holds the Makefile and the presets, and no environment."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    # The variables of a make around this test are not the user's.
    ours = ("MAKE", "MFLAGS", "ARGS", "PRESET", "TRAINER", "DATA", "PYTHON", "CASES", "SEED")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}

    def run(*words: str) -> subprocess.CompletedProcess:
        return processes.run(["make", *words], cwd=tmp_path, env=env)

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


def test_a_folder_of_cases_that_is_not_there(make, tmp_path):
    assert "'nowhere' does not exist" in refused(make("parity", "CASES=nowhere"), tmp_path)


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
    """Preset, stage and data, ARGS last."""
    assert trained("train-stage2", "ARGS=--trainer.max_steps=3 --model.seed=1") == (
        "-P -m triptych fit --preset tiny --stage stage2 --data-dir mine "
        "--trainer.max_steps=3 --model.seed=1"
    )


def test_a_trainer_is_the_hardware(trained):
    assert trained(
        "train-stage2", "PRESET=blip3o_8b", "TRAINER=ddp", "ARGS=--trainer.devices=2"
    ) == (
        "-P -m triptych fit --preset blip3o_8b --stage stage2 --hardware ddp --data-dir mine "
        "--trainer.devices=2"
    )
