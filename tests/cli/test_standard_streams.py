"""Every command with closed, full and broken standard streams: no traceback, the usual statuses."""

import os
import shlex
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress

import httpx
import pytest
import torch
from builders import ROOT
from PIL import Image
from processes import run, started

from triptych.cli.main import COMMANDS, LIGHTNING_COMMANDS

FEW = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1"]
LOST = {"closed": 0, "full": 1, "broken": 141}  # status where all else went well
SAYS = {"full": "standard output could not be written (No space left on device)"}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red thing")
    question = '{"image": "red.png", "question": "what is it?"}\n'
    (tmp_path / "questions.jsonl").write_text(question * 3)
    shutil.copytree(ROOT / "tests/data/parity/dit", tmp_path / "cases/dit")
    run = {"global_step": 1, "state_dict": {"generation.queries": torch.zeros(2)}}
    torch.save(run, tmp_path / "run.ckpt")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    return tmp_path


CONFIGURED = ["--config", ROOT / "conf/base.yaml", "--config", ROOT / "conf/presets/tiny.yaml"]
PRINTED = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in [*COMMANDS, *LIGHTNING_COMMANDS]),
    *([name, *CONFIGURED, "--print_config"] for name in LIGHTNING_COMMANDS),
]


OTHERS_OF_LIGHTNING = set(LIGHTNING_COMMANDS) - {"fit"}  # the same parser, seconds each


def in_turn(cases):
    """Each case with one kind of stream; with the other kinds where sweeps run, too."""
    for number, case in enumerate(cases):
        for place, kind in enumerate(LOST):
            quick = place == number % len(LOST) and case[0] not in OTHERS_OF_LIGHTNING
            marks = () if quick else pytest.mark.sweep
            yield pytest.param(case, kind, marks=marks, id=f"{number}-{kind}")


@pytest.mark.parametrize(("command", "kind"), in_turn(PRINTED))
def test_every_command_reports_a_lost_output(command, kind, forks, tmp_path):
    """Closed standard input and a full standard error beside it change nothing."""
    heavy = command[0] in LIGHTNING_COMMANDS
    for streams in [[None, kind, None], ["closed", kind, "full"]][: 1 if heavy else 2]:
        ((status, said),) = forks.together(tmp_path, command, streams=streams)
        assert status == LOST[kind] and "Traceback" not in said, said
        assert SAYS.get(kind, "") in said or streams[2]


WORK = {
    "generate": ["generate", "--prompts", "prompts.txt", "--batch-size", 1, *FEW, "-o", "out"],
    "edit": ["edit", "red.png", "make it blue", *FEW, "-o", "out"],
    "reconstruct": ["reconstruct", "red.png", "--decoder-num-inference-steps", 1, "-o", "out"],
    "chat": ["chat", "red.png", "what is it?"],
    "chat lines": ["chat", "--jsonl", "questions.jsonl", "--batch-size", 1],
    "pack": ["data", "pack", ".", "--out", "out"],
    "inspect": ["data", "inspect", ".", "--out", "out/sheet.png"],
    "export": ["export", "run.ckpt", "--out", "out/weights.safetensors"],
    "eval": ["eval", "shapes", "--num-captions", 2, "--out", "out/scores.json"],
    "parity": ["parity", "cases"],
}
MADE = {
    "generate": {"000000-000.png", "000001-001.png", "grid.png", "results.jsonl"},
    "edit": {"000000-000.png", "grid.png", "results.jsonl"},
    "reconstruct": {"000000-000-red.png", "grid.png", "results.jsonl"},
    "inspect": {"sheet.png"},
    "export": {"weights.safetensors"},
    "eval": {"scores.json"},
}


@pytest.mark.parametrize(("name", "kind"), in_turn(WORK))
def test_work_is_done_and_kept(name, kind, forks, folder):
    ((status, said),) = forks.together(folder, WORK[name], streams=["empty", kind, None])
    assert status == LOST[kind] and "Traceback" not in said, said
    assert SAYS.get(kind, "") in said
    if name in MADE:
        assert set(os.listdir(folder / "out")) == MADE[name]


@pytest.mark.parametrize("kind", ["closed", "full", "broken"])
def test_mistakes_keep_their_status(kind, forks, folder):
    commands = [["generate", "--prompts", "nowhere.txt"], ["bogus"], ["generate", "--bogus"]]
    for streams in ([None, kind, None], ["empty", kind, kind], ["closed", None, kind]):
        ended = forks.together(folder, *commands, streams=streams)
        assert [status for status, _ in ended] == [1, 2, 2]
        assert not any("Traceback" in said for _, said in ended)
        assert (streams[2] is None) == all(said for _, said in ended)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (["generate", "--prompts", "-", "-o", "out"], 1, "there is no prompt in"),
        (["edit", "--jsonl", "-", "-o", "out"], 1, "every line of - names one"),
        (["chat", "--jsonl", "-"], 0, ""),
        (["chat", "red.png"], 0, ""),
    ],
)
def test_no_standard_input_is_an_empty_one(command, status, says, forks, folder):
    for kind in ("closed", "empty"):
        ((ended, said),) = forks.together(folder, command, streams=[kind, None, None])
        assert ended == status and says in said and "Traceback" not in said, said


def test_standard_input_that_cannot_be_read_is_one_sentence(folder):
    for program in (["generate", "--prompts", "-"], ["chat", "--jsonl", "-"]):
        with (folder / "written").open("w") as written:
            done = triptych(*program, folder=folder, stdin=written)
        assert done.returncode == 1
        assert done.stderr == (
            "triptych: standard input cannot be read (Bad file descriptor); give a file or a "
            "pipe.\n"
        )


def triptych(*words, folder, **streams):
    """The command as a process, whose interpreter shuts down; buffered, as on a pipe."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    streams = {"stdout": None} | streams
    return run([sys.executable, "-m", "triptych", *words], cwd=folder, env=environment, **streams)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        # each kind once, over both servers; the other pairs are for sweeps
        pytest.param(command, kind, marks=pytest.mark.slow if kind in first else pytest.mark.sweep)
        for command, first in (("serve", {"broken"}), ("app", {"closed", "full"}))
        for kind in LOST
    ],
)
def test_a_server_works_and_ends_without_its_output(command, kind, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "triptych", command, "--port", str(port)]
    output = {"closed": ">&-", "full": "> /dev/full", "broken": "> pipe"}[kind]
    script = f"mkfifo pipe; true < pipe & exec {shlex.join(words)} <&- {output}"
    if kind != "broken":
        script = script.partition("& ")[2]
    with (
        (tmp_path / "said").open("w") as said,
        started(["bash", "-c", script], cwd=tmp_path, stderr=said) as process,
    ):
        for _ in range(300):
            with suppress(httpx.TransportError):
                answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.2)
        assert answer.status_code < 500
        process.terminate()
        status = process.wait(30)
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert status in {0, LOST[kind], 128 + signal.SIGTERM}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_interpreter_shutdown_prints_nothing_more(unbuffered, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for words in (["--help"], ["--version"], ["data", "pack", "--help"]):
        with open("/dev/full", "w") as full:
            done = triptych(*words, folder=tmp_path, stdout=full)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        reading, writing = os.pipe()
        os.close(reading)
        done = triptych(*words, folder=tmp_path, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")
