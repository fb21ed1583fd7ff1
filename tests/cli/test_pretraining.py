"""The runs of `triptych pretrain`: what each starts from, and that its flags exist."""

import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from triptych.cli import pretrain_tiny
from triptych.cli.main import main
from triptych.cli.pretrain_tiny import PLAN

NAMES = [planned.name for planned in PLAN]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Command of each run by name, as if each had trained a tensor of its own and a common one."""
    found = {}

    def train(planned, runs, steps):
        found[planned.name] = pretrain_tiny.command(planned, runs, steps)
        folder = runs / planned.name / "version_0"
        folder.mkdir(parents=True)
        place = torch.full((1,), float(NAMES.index(planned.name)))
        own, common = place.clone(), place
        save_file({planned.name: own, planned.label: common}, folder / "weights.safetensors")

    monkeypatch.setattr(pretrain_tiny, "train", train)
    monkeypatch.setattr(pretrain_tiny, "make_tokenizer", lambda runs: None)
    monkeypatch.setattr(pretrain_tiny, "collect", lambda runs: runs / "assets")
    pretrain_tiny.run(tmp_path / "runs")
    return found


def weights(command):
    """Tensors of the weight files of a command by label."""
    flags = [flag.split("=", 1) for flag in command if flag.startswith("--model.weights.")]
    return {name.removeprefix("--model.weights."): load_file(path) for name, path in flags}


def test_runs_follow_those_they_need(commands):
    assert list(commands) == NAMES
    labels = {planned.name: planned.label for planned in PLAN}
    for planned in PLAN:
        expected = {labels[needed] for needed in planned.needs}
        assert weights(commands[planned.name]).keys() == expected


def test_a_part_trained_later_is_put_over_the_whole(commands):
    read = weights(commands["stage1"])["understanding"]
    assert read["understanding"].item() == NAMES.index("attributes")
    assert {"reading", "attributes"} < read.keys()
    assert weights(commands["stage2"])["understanding"].keys() == {
        "reading",
        "stage1",
        "understanding",
    }


@pytest.mark.parametrize("name", NAMES)
def test_flags_of_a_run_exist(name, commands, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="^0$"):
        main([*commands[name], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["max_steps"] == next(p.steps for p in PLAN if p.name == name)
    assert config["trainer"]["logger"]["init_args"]["name"] == name


def test_finished_runs_are_skipped(commands, tmp_path):
    commands.clear()
    pretrain_tiny.run(tmp_path / "runs")
    assert commands == {}
