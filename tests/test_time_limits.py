"""Tests, and the processes that they start, have time limits."""

import os
import shutil
import signal
import subprocess
import sys
import time

import processes
import pytest
from builders import ROOT

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(300)"]


def test_a_process_is_killed_after_its_limit():
    with (
        pytest.raises(AssertionError, match="killed after 2 seconds: .*time.sleep"),
        processes.started(SLEEP, 2, stdout=subprocess.PIPE, text=True) as process,
    ):
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_children_end_with_their_process():
    command = ["bash", "-c", "sleep 300 & echo $!; wait"]
    with processes.started(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] != "Z"


def test_a_forked_process_is_killed_after_its_limit():
    with pytest.raises(AssertionError, match="forked process was killed after 0.1 seconds"):
        processes.exit_status(processes.forked(lambda: time.sleep(300)), 0.1)


@pytest.mark.parametrize(("work", "status"), [(lambda: None, 0), (lambda: 1 / 0, 1)])
def test_a_forked_process_ends_after_its_work(work, status):
    assert processes.exit_status(processes.forked(work)) == status


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_test_that_never_ends_is_named(workers, tmp_path):
    for name in ("conftest.py", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()
    tests = (
        "import time\ndef test_without_end():\n    time.sleep(300)\ndef test_other():\n    pass\n"
    )
    (tmp_path / "tests" / "test_some.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-v", "-o", "faulthandler_timeout=2", *workers]
    done = processes.run(command, cwd=tmp_path)
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr and "in test_without_end" in done.stderr
    if workers:  # another process runs the rest
        assert "1 failed, 1 passed" in done.stdout
