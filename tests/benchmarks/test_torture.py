"""Runs that are killed and resumed equal an uninterrupted run."""

import json
import sys
from pathlib import Path

import pytest
from processes import run

TORTURE = Path(__file__).parents[2] / "benchmarks" / "torture.py"


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened():
    done = run([sys.executable, TORTURE, "--runs", "8"], seconds=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["runs"] == result["identical"] == 8
    assert sum(result["kills"].values()) >= 8 and result["average_included"]
    assert set(result["kills"]) == {
        *("time", "step", "save", "rename"),
        *("validation", "log", "folder", "export"),
    }
