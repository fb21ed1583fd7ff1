"""Omitted tests are counted by reason in the last line, and CI allows only one reason."""

import os
import re
import shutil
import sys
from importlib.metadata import version

import processes
import pytest
from builders import ROOT

TESTS = """
import pytest

def test_plain():
    pass

@pytest.mark.compiler
def test_of_a_compiler():
    pass

@pytest.mark.compiler
def test_of_a_compiler_too():
    pass

@pytest.mark.slow
def test_that_is_slow():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """Runs these tests with our conftest.py, no program on the path -> (status, output)."""
    for name in ("conftest.py", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()

    def run(tests, *options):
        (tmp_path / "tests" / "test_some.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-q", *options]
        environment = os.environ | {"PATH": str(tmp_path)}
        done = processes.run(command, cwd=tmp_path, env=environment)
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_the_last_line_counts_by_reason(run, processes):
    status, out = run(TESTS, "-m", "not slow", *processes)
    assert status == 0 and "\n1 passed" in out
    (line,) = re.findall("^left out: (.*)$", out, re.MULTILINE)
    assert sorted(line.split("; ")) == [
        "1 are slow (`make test-slow` runs them)",
        "2 need g++",
    ]
    assert "SKIPPED" not in out
    assert f"\nversions: Python {sys.version.split()[0]}, torch {version('torch')}, " in out


def test_it_says_that_nothing_was_left_out(run):
    status, out = run("def test_one(): pass")
    assert status == 0 and "\nleft out: nothing\n" in out


def test_missing_tools_fail_the_run_with_nothing_left_out(run):
    status, out = run(TESTS, "--nothing-left-out")
    assert status == 0 and "\n4 passed" in out and "\nleft out: nothing\n" in out


@pytest.mark.parametrize("processes", [(), ("-n", "1")])
def test_skips_fail_the_run_with_nothing_left_out(run, processes):
    skips = "import pytest\n\ndef test_one():\n    pytest.skip('it rains')"
    for options, expected in (((), 0), (("--nothing-left-out",), 1)):
        status, out = run(skips, *options, *processes)
        assert status == expected and "\nleft out: 1 it rains\n" in out


@pytest.mark.parametrize("processes", [(), ("-n", "1")])
def test_what_would_begin_too_late_is_counted_and_fails_nothing(run, processes):
    options = ("--nothing-left-out", "--last-start=0", *processes)
    status, out = run("def test_one(): pass\n\ndef test_two(): pass", *options)
    assert status == 0 and "\nleft out: 2 would begin later than --last-start\n" in out
    status, out = run("def test_one(): assert False", "--last-start=3600", *processes)
    assert status == 1 and "\n1 failed" in out


def test_no_test_skips_itself():
    """Requirements of tests are markers of conftest.py, which counts them; CI overrules them."""
    asks = re.compile(r"pytest\.(skip|importorskip|xfail)\(|mark\.(skip|skipif|xfail)\b")
    found = [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if path.name != "test_left_out.py" and asks.search(path.read_text())
    ]
    assert found == []
