"""The rehearsal: a training step by the real road, resumed to the same bits; wrong words end it."""

import json
import os
import sys
from pathlib import Path

import pytest
from processes import run
from rehearse import training, weights
from rehearse.__main__ import NEEDS, PARTS, judged, wanted

ROOT = Path(__file__).parents[2]


def rehearse(*words, seconds=300):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, "-m", "rehearse", *words]
    return run(command, seconds=seconds, cwd=ROOT, env=env)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--only", "resume", "published layout"], marks=pytest.mark.slow),
        pytest.param([], marks=pytest.mark.sweep, id="all"),
    ],
)
def test_parts_of_the_tiny_preset_hold(words, tmp_path):
    out = tmp_path / "rehearse.json"
    words = ["--preset", "tiny", "--layers", "2", "--out", str(out), *words]
    done = rehearse(*words, seconds=1500)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and result["failed"] == [], done.stdout[-3000:]
    assert 0 < result["peak_gb"] < 4
    resumed = result["parts"]["resume"]["match"]
    assert resumed["tensors that differ from the run that went on"] == [0, 0]
    assert json.loads(out.read_text())["figures"] == result


def test_a_step_of_a_stage_by_the_trainer(tmp_path):
    facts = weights.write("tiny", 1, tmp_path)
    assert facts["parameters"] > 1e6
    found = judged(training.step("tiny", "stage3", 1, tmp_path))
    assert "error" not in found, found
    assert found["loss"][0] > 0 and found["without_gradient"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layers", "0"], "LAYERS is '0'; give a whole number of 1 or more."),
        (["--layers", "two"], "LAYERS is 'two'; give a whole number of 1 or more."),
        (["--preset", "huge"], "the preset 'huge' is unknown; choose one of blip3o_4b, "),
    ],
)
def test_wrong_words_end_it_before_any_work(words, sentence):
    done = rehearse(*words)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(sentence)


def test_a_number_above_its_bound_fails_its_part():
    assert "error" not in judged({"match": {"difference": [0.5, 0.5]}})
    assert judged({"match": {"difference": [0.6, 0.5]}})["error"] == "difference: 0.6, at most 0.5"
    assert "error" in judged({"match": {"difference": [float("nan"), 0.5]}})


def test_a_part_brings_what_it_needs():
    assert wanted(["resume"]) == ["weights", "stage2", "stage2 cached", "resume"]
    assert set(NEEDS) | set(NEEDS.values()) <= set(PARTS)
