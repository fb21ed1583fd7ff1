"""--devices: the output of several processes equals that of one, bit by bit."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from processes import started
from tolerances import assert_close

from triptych.cli.devices import for_each, is_distributed
from triptych.data_modules import ShardFolder
from triptych.data_modules.features.cache import FeatureCache

FEW = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1", "--device", "cpu"]
PROMPTS = ["a red circle", "two blue squares", "a green star"]
MANY = ["generate", *PROMPTS, *FEW, "--batch-size", "1"]
TWO = ["--devices", "2"]


def torchrun(port):
    """Environments of two processes that torchrun starts."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    return [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def slurm(port):
    """Environments of two processes that SLURM's srun starts on one machine."""
    group = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "test", "SLURM_NODEID": "0"}
    group |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    group |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    return [{**group, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]


LAUNCHERS = [torchrun, slurm]


def together(forks, folder, *command, launcher=torchrun):
    """Status and output of a command that a launcher starts twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ended = forks.together(folder, command, command, environments=launcher(port))
    return [status for status, _ in ended], "".join(said for _, said in ended)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_make_the_images_of_one_process(launcher, forks, tmp_path):
    status, said = forks(tmp_path, *MANY, "-o", "one")
    assert status == 0, said
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO, launcher=launcher)
    assert statuses == [0, 0], said
    assert files(tmp_path / "one") == files(tmp_path / "two")
    lines = [line for line in said.splitlines() if "\t" in line]
    assert sorted(lines) == [f"two/{n:06d}-{n:03d}.png\t{p}" for n, p in enumerate(PROMPTS)]
    assert "Traceback" not in said and "Warning" not in said
    # the same command again makes what is missing, and tells of each image once
    (tmp_path / "two/000001-001.png").unlink()
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO, launcher=launcher)
    assert statuses == [0, 0] and files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(line for line in said.splitlines() if "\t" in line) == sorted(lines)
    statuses, said = together(forks, tmp_path, *MANY, "-o", "two", *TWO, launcher=launcher)
    assert statuses == [0, 0] and sorted(said.splitlines()) == sorted(lines)


@pytest.mark.parametrize(
    ("name", "launcher"), [("geneval", slurm), ("dpg", torchrun), ("wise", slurm)]
)
def test_benchmark_images_are_those_of_one_process(name, launcher, forks, tmp_path):
    entries = [
        {
            "geneval": {"tag": "single_object", "include": [], "prompt": text},
            "dpg": {"item_id": f"{number}", "prompt": text},
            "wise": {"prompt_id": number, "Prompt": text, "Explanation": "a shape"},
        }[name]
        for number, text in enumerate(PROMPTS, 1)
    ]
    lines = "\n".join(map(json.dumps, entries))
    (tmp_path / "prompts").write_text(json.dumps(entries) if name == "wise" else lines)
    make = ["eval", name, "--prompts", "prompts", *FEW, "--generate-only", "--batch-size", "1"]
    make += {"geneval": ["-n", "1"], "dpg": ["--grid", "1"], "wise": []}[name]
    status, said = forks(tmp_path, *make, "--images-dir", "one")
    assert status == 0, said
    # what a killed run leaves: one image whole, and others missing or torn
    made = sorted((tmp_path / "one").rglob("*.png"))
    assert len(made) == len(PROMPTS)
    left = tmp_path / "two" / made[1].relative_to(tmp_path / "one")
    left.parent.mkdir(parents=True)
    shutil.copy2(made[1], left)
    statuses, said = together(
        forks, tmp_path, *make, "--images-dir", "two", *TWO, launcher=launcher
    )
    assert statuses == [0, 0] and "Traceback" not in said, said
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert left.stat().st_mtime_ns == made[1].stat().st_mtime_ns
    assert said.count("\t") == len(PROMPTS)


def test_features_are_those_of_one_process(forks, tmp_path, shapes_folder):
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in sorted((shapes_folder / "train").glob("*.tar"))[:3]:
        shutil.copy2(path, shards)
    make = ["data", "features", "shards", "--device", "cpu", "--batch-size", "3"]
    make += ["--storage-dtype", "fp32", "--out"]
    assert forks(tmp_path, *make, "one")[0] == 0
    statuses, said = together(forks, tmp_path, *make, "two", *TWO, launcher=slurm)
    assert statuses == [0, 0] and "Traceback" not in said, said
    assert said.count("features of 24 samples in 3 shards") == 1
    source = ShardFolder(shards).open()
    one, two = (FeatureCache(tmp_path / name, source) for name in ("one", "two"))
    for number in range(24):
        assert_close(one.get(number), two.get(number))
    # the same command again makes what is missing, which is less than a shard for each rank
    first, *others = sorted((tmp_path / "two").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in others]
    first.unlink()
    statuses, said = together(forks, tmp_path, *make, "two", *TWO, launcher=slurm)
    assert statuses == [0, 0] and first.exists(), said
    assert [path.stat().st_mtime_ns for path in others] == times


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
        assert forks(tmp_path, *shapes, "--part", part, "--images-dir", "p")[0] == 0
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


KILLED = "rank 1 was killed by SIGKILL, so the others end; the same"


@pytest.mark.parametrize(
    ("number", "first", "status", "says"),
    [
        pytest.param(signal.SIGTERM, True, 143, "ended by SIGTERM.", marks=pytest.mark.sweep),
        pytest.param(signal.SIGINT, True, 130, "ended by SIGINT.", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, False, 1, KILLED, marks=pytest.mark.slow),
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
