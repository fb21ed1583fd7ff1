"""Targets of the Makefile: all are listed and can run, and bad input stops before any set-up."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.M)
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def make(tmp_path):
    """Runs make in a bare folder that holds the Makefile and the presets, and no environment."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    locks = [path.name for path in ROOT.glob("constraints*.txt")]
    for name in ("setup.cfg", "pyproject.toml", *locks):
        (tmp_path / name).touch()
    # The variables of a make around this test are not the user's.
    ours = (
        "MAKE",
        "MFLAGS",
        "ARGS",
        "PRESET",
        "TRAINER",
        "DATA",
        "PYTHON",
        "CASES",
        "SEED",
        "LAYERS",
    )
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


def test_every_target_is_phony():
    """Else a file of its name would stop it."""
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1]
    stages = re.search(r"^STAGES := (.*)$", MAKEFILE, re.M)[1]
    assert phony.replace("$(STAGES)", stages).split() == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_recipe(make, tmp_path, target):
    (tmp_path / "tests" / "data" / "parity").mkdir(parents=True)
    (tmp_path / "tests" / "beside.txt").touch()
    presets = tmp_path / "conf" / "presets"
    presets.mkdir(parents=True, exist_ok=True)
    (presets / "tiny.yaml").touch()
    result = make("-n", target)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def commands_of(text):
    """Words after `make` in the code of a Markdown page, variables left out."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", text)
    for line in [*(line for block in fenced for line in block.splitlines()), *inline]:
        if found := re.match(r"make ((?:[A-Z]+=\S* )*)([a-z][a-z0-9-]*)", line):
            yield found[2]


def test_targets_of_the_documentation_exist():
    named = {name for page in PAGES for name in commands_of(page.read_text())}
    assert {"setup", "train-stage2", "test"} <= named <= set(TARGETS)


def test_a_folder_of_cases_that_is_not_there(make, tmp_path):
    assert "'nowhere' does not exist" in refused(make("parity", "CASES=nowhere"), tmp_path)


@pytest.mark.parametrize("layers", ["0", "two", "-1", "1.5"])
def test_layers_that_are_no_number(make, tmp_path, layers):
    line = refused(make("rehearse", f"LAYERS={layers}"), tmp_path)
    assert f"LAYERS is '{layers}': give a whole number of 1 or more" in line


def test_a_rehearsal_of_an_unknown_preset(make, tmp_path):
    line = refused(make("rehearse", "PRESET=huge", "LAYERS=2"), tmp_path)
    assert "the preset 'huge' is unknown" in line


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
    arguments = ("TRAINER=single", "ARGS=--trainer.max_steps=3 --model.seed=1")
    assert trained("train-stage2", *arguments) == (
        "-P -m triptych fit --preset tiny --stage stage2 --hardware single --data-dir mine "
        "--trainer.max_steps=3 --model.seed=1"
    )


@pytest.mark.parametrize(
    "stage,preset,processes",
    [("stage2", "tiny", 2), ("encoder", "tiny", 1), ("stage2", "blip3o_4b", 1)],
)
def test_the_tiny_preset_trains_in_two_processes_without_a_gpu(trained, stage, preset, processes):
    two = " --hardware cpu" if processes == 2 and not Path("/dev/nvidia0").exists() else ""
    assert trained(f"train-{stage}", f"PRESET={preset}") == (
        f"-P -m triptych fit --preset {preset} --stage {stage}{two} --data-dir mine"
    )


def test_a_trainer_is_the_hardware(trained):
    assert trained(
        "train-stage2", "PRESET=blip3o_8b", "TRAINER=ddp", "ARGS=--trainer.devices=2"
    ) == (
        "-P -m triptych fit --preset blip3o_8b --stage stage2 --hardware ddp --data-dir mine "
        "--trainer.devices=2"
    )
