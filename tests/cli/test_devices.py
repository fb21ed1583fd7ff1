"""--devices: the output of several processes equals that of one, bit by bit."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from processes import started

from triptych.cli.devices import for_each, is_distributed

FEW = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1", "--device", "cpu"]
PROMPTS = ["a red circle", "two blue squares", "a green star"]
MANY = ["generate", *PROMPTS, *FEW, "--batch-size", "1"]
TWO = ["--devices", "2"]


def ranks():
    """Environments of two processes that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    return [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def together(forks, folder, *command):
    """Status and output of a command that torchrun starts twice."""
    ended = forks.together(folder, command, command, environments=ranks())
    return [status for status, _ in ended], "".join(said for _, said in ended)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_ranks_of_torchrun_make_the_images_of_one_process(forks, tmp_path):
    status, said = forks(tmp_path, *MANY, "-o", "one")
    assert status == 0, said
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO)
    assert statuses == [0, 0], said
    assert files(tmp_path / "one") == files(tmp_path / "two")
    lines = [line for line in said.splitlines() if "\t" in line]
    assert sorted(lines) == [f"two/{n:06d}-{n:03d}.png\t{p}" for n, p in enumerate(PROMPTS)]
    assert "Traceback" not in said and "Warning" not in said
    # the same command again makes what is missing, and tells of each image once
    (tmp_path / "two/000001-001.png").unlink()
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO)
    assert statuses == [0, 0] and files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(line for line in said.splitlines() if "\t" in line) == sorted(lines)
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO)
    assert statuses == [0, 0] and sorted(said.splitlines()) == sorted(lines)


def test_scores_are_those_of_one_process(forks, tmp_path):
    shapes = ["eval", "shapes", "--num-captions", 3, "--batch-size", 2, *FEW[:2], "--device", "cpu"]
    assert forks(tmp_path, *shapes, "--out", "one.json")[0] == 0
    statuses, said = together(forks, tmp_path, *shapes, "--out", "two.json", *TWO)
    assert statuses == [0, 0], said
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert said.count('"scores"') == 1


def test_parts_of_the_shapes_keep_images_that_the_whole_takes(forks, tmp_path):
    shapes = ["eval", "shapes", "--num-captions", 3, "--batch-size", 2, *FEW[:2], "--device", "cpu"]
    for part in ("1/2", "2/2"):
        assert forks(tmp_path, *shapes, "--part", part, "--images-dir", "p") == (0, "")
    before = files(tmp_path / "p")
    assert len(before) == 6
    assert forks(tmp_path, *shapes, "--images-dir", "p", "--out", "s.json")[0] == 0
    assert files(tmp_path / "p") == before
    assert json.loads((tmp_path / "s.json").read_text())["counts"]["scored"] > 6
    status, said = forks(tmp_path, *shapes, "--part", "1/2")
    assert status == 2 and "give --images-dir" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sampler", "eular", *TWO], "there is no sampler 'eular'"),
        (["--from", "nowhere", *TWO], "there is no model at nowhere"),
        ([], "2 processes were started for 1 devices"),
        (["--devices", "3"], "2 processes were started for 3 devices"),
    ],
)
def test_a_mistake_is_one_sentence_of_all_ranks(flags, says, forks, tmp_path):
    statuses, said = together(forks, tmp_path, *MANY, "-o", "out", *flags)
    assert statuses == [1, 1] and says in said and "Traceback" not in said
    if flags[-2:] == TWO:
        assert said.count("triptych:") == 1
    assert not (tmp_path / "out").exists()


def test_one_process_computes_in_order(monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    parsed = Namespace(devices=1, num_nodes=1)
    assert not is_distributed(parsed)
    assert for_each(parsed, 3, lambda device: [device], lambda state, n: (state, n)) == [
        ([None], n) for n in range(3)
    ]
    assert for_each(parsed, 0, None, None) == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert is_distributed(parsed)


# --- processes that Lightning starts --------------------------------------------------------------


def start(folder, *arguments, stdin=None):
    return started(
        [sys.executable, "-m", "triptych", *arguments],
        seconds=300,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_read_one_standard_input(forks, tmp_path):
    assert forks(tmp_path, *MANY, "-o", "one")[0] == 0
    words = ["generate", "--prompts", "-", *MANY[4:], "-o", "two", *TWO]
    with start(tmp_path, *words, stdin=subprocess.PIPE) as running:
        out, err = running.communicate("\n".join(PROMPTS))
    assert running.returncode == 0, err
    assert err == "" and len(out.splitlines()) == len(PROMPTS)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def alive(marker):
    """Processes whose command line has a marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "first", "status", "says"),
    [
        (signal.SIGTERM, True, 143, "ended by SIGTERM."),
        (signal.SIGINT, True, 130, "ended by SIGINT."),
        (signal.SIGKILL, False, 1, "rank 1 was killed by SIGKILL, so the others end; the same"),
    ],
)
def test_signal_ends_all_ranks_and_the_same_command_resumes(number, first, status, says, tmp_path):
    marker = f"out-{number}"
    words = ["generate", *PROMPTS, "-n", "40", *FEW, "--batch-size", "1", "-o", marker, *TWO]
    with start(tmp_path, *words) as running:
        assert marker in running.stdout.readline()
        other = next(each for each in alive(marker) if each != running.pid)
        os.kill(running.pid if first else other, number)
        _, said = running.communicate(timeout=60)
        assert running.returncode == status and says in said and said.count("triptych:") == 1
        deadline = time.monotonic() + 20
        while alive(marker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(marker)
    made = sorted(path.name for path in (tmp_path / marker).glob("0*.png"))
    assert 0 < len(made) < 120
    assert all(re.fullmatch(r"\d{6}-\d{3}\.png", name) for name in made)
