"""The check of a GPU: its parts are isolated and limited in time, its results always whole."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from gpu_check.__main__ import LIMITS, check, write_atomically
from parts import run_part
from processes import run

ROOT = Path(__file__).parents[2]
GOOD = "import json; print('words'); print(json.dumps({'speed': 3}))"
BAD = "import sys; print('{}'); sys.exit('out of ideas')"


def child(code, seconds=60):
    return run_part([sys.executable, "-c", code], seconds)


def test_a_part_that_fails_stops_no_other(tmp_path):
    codes = {"good": GOOD, "bad": BAD, "killed": "import os; os.kill(os.getpid(), 9)", "last": GOOD}
    written = []
    found = check(
        lambda name, seconds: child(codes[name], seconds),
        dict.fromkeys(codes, 60.0),
        seconds=200,
        write=lambda parts: written.append(json.loads(json.dumps(parts))),
    )
    assert found["good"]["speed"] == found["last"]["speed"] == 3
    assert found["bad"]["error"] == "out of ideas"
    assert found["killed"]["error"] == "ended by SIGKILL"
    # before the first part, and after each
    assert [sum("not_reached" in each for each in parts.values()) for parts in written] == [
        *(4, 3, 2, 1, 0)
    ]
    assert written[2]["bad"]["error"] and "not_reached" in written[2]["killed"]


def test_a_part_that_takes_too_long_is_killed_with_its_children():
    started = "import subprocess, sys; subprocess.run([sys.executable, '-c', '{}'])"
    result = child(started.format("import time; time.sleep(600)"), seconds=1)
    assert result["error"] == "not done within 1 s"


def test_parts_behind_the_deadline_are_not_reached():
    def slow(name, seconds):
        given.append(seconds)
        time.sleep(0.4)
        return {}

    given = []
    found = check(slow, dict.fromkeys("abc", 0.5), seconds=0.6, write=lambda parts: None)
    assert found["a"] == {} and found["b"] == found["c"] == {"not_reached": True}
    assert given == [0.5]


def test_limits_of_parts_leave_room_for_what_is_quoted_most():
    first = list(LIMITS)[:4]
    assert sum(LIMITS[name] for name in first) < 540


def test_a_result_replaces_the_older_whole(tmp_path):
    out = tmp_path / "results" / "gpu.json"
    for number in range(2):
        write_atomically(out, {"number": number})
        assert json.loads(out.read_text()) == {"number": number}
    assert list(out.parent.iterdir()) == [out]


def test_without_a_device_the_dry_run_is_named():
    done = module("gpu_check", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "there is no CUDA device here; make gpu-check ARGS=--dry-run needs none."
    )


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.cuda_stub
def test_parts_run_on_fake_tensors(tmp_path):
    """Some of them: `make gpu-check ARGS=--dry-run` runs all, in minutes."""
    out, some = tmp_path / "dry.json", ["stage2 4b fsdp2", "parity", "attention", "nccl"]
    done = module("gpu_check", "--dry-run", "--out", str(out), "--only", *some, seconds=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["dry_run"] and result["failed"] == result["not_reached"] == []
    written = json.loads(out.read_text())
    assert written["dry_run"] and set(written["parts"]) == set(some)


def module(*words, seconds=400, **variables):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), **variables}
    return run([sys.executable, "-m", *words], seconds=seconds, cwd=ROOT, env=env)
