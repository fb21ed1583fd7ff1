"""Signals to one process; runs of several ranks that end by signals or by the death of a rank."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import processes
import pytest
from builders import ROOT

from triptych.data_modules.sampling.step_dataset import step_loader
from triptych.training.ranks import ending_together, lost_contact
from triptych.utils.errors import UserError
from triptych.utils.signals import ENDING

CODE = [p for folder in ("src", "callbacks", "data_modules") for p in (ROOT / folder).rglob("*.py")]


@pytest.fixture
def begun():
    """Starts processes that run `body`, and kills them after the test."""
    code = (
        "import os, signal, sys, threading, time\nfrom triptych.utils.signals import supervisor\n"
    )
    with ExitStack() as stack:

        def start(body, env=None):
            process = processes.started(
                [sys.executable, "-c", code + textwrap.dedent(body)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **(env or {})},
                preexec_fn=as_from_a_terminal,
                start_new_session=False,  # one of them leads a group of its own
                process_group=0,
            )
            return stack.enter_context(process)

        yield start


def as_from_a_terminal():
    """A test under nohup, or in a background shell, would pass on that signals are ignored."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def started(begun):
    """Starts a process that runs `body` with signals handled, once it has printed a line."""

    def start(body):
        process = begun(body)
        assert process.stdout.readline() == "ready\n"
        return process

    return start


# The main thread waits where no Python code runs, as in a collective: a lock is waited for in C,
# and no handler of Python's can end that.
WAITING = """
import ctypes
print("ready", flush=True)
libc = ctypes.CDLL(None)
while True:
    libc.sem_wait(ctypes.create_string_buffer(64))
"""


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGTERM, 1),
        (signal.SIGTERM, 3),
        (signal.SIGINT, 1),
        (signal.SIGHUP, 1),
        (signal.SIGUSR1, 1),
    ],
)
def test_outside_of_training_a_signal_ends_a_process_that_waits(number, times, started):
    process = started("with supervisor.handled():\n" + textwrap.indent(WAITING, "    "))
    for _ in range(times):
        process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert said == f"triptych: ended by {number.name}.\n"


def test_signal_in_training_is_deferred_up_to_a_time_limit(started):
    body = "supervisor.install(owner=True)\nsupervisor.deferred, supervisor.limit = True, 0.5\n"
    process = started(body + WAITING)
    began = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143 and 0.5 <= time.monotonic() - began < 5
    assert said.startswith("triptych: SIGTERM: still waiting after 0.5 s") and said.count("\n") == 1


def test_a_second_ctrl_c_ends_at_once(started):
    body = "supervisor.install(owner=True)\nsupervisor.deferred = True\n"
    process = started(body + WAITING)
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends it at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_in_a_program_of_ones_own_a_second_ctrl_c_is_an_interrupt(started):
    body = """
        supervisor.install(owner=False)
        supervisor.deferred = True
        print("ready", flush=True)
        try:
            while supervisor.received is None:
                time.sleep(0.01)
            time.sleep(0.1)
            print("noted", flush=True)
            time.sleep(30)
        except KeyboardInterrupt:
            print("interrupted")
    """
    process = started(body)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "interrupted\n" and process.returncode == 0


def test_foreign_signal_handlers_are_kept(started):
    body = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: print("theirs", flush=True))
        with supervisor.handled():
            print("ready", flush=True)
            for _ in range(3):
                signal.sigtimedwait([signal.SIGALRM], 0.3)
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    """
    process = started(body)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 0 and said == "theirs\nTrue\n"


def test_a_forked_process_answers_signals_by_itself(started):
    body = """
        with supervisor.handled():
            if not (child := os.fork()):
                print("ready", flush=True)
                time.sleep(30)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), supervisor.received)
    """
    process = started(body)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 0 and said == "-15 None\n"


@pytest.mark.slow
def test_a_loader_process_lives_through_a_signal_to_the_group(started):
    """`timeout` and a terminal send to every process of the group."""
    body = """
        import torch
        from triptych.data_modules.sampling.step_dataset import step_loader

        class Pids(torch.utils.data.Dataset):
            def __len__(self):
                return 40
            def __getitem__(self, index):
                time.sleep(0.02)
                return os.getpid()

        os.setpgid(0, 0)
        supervisor.install(owner=True)
        supervisor.deferred = True
        batches = iter(step_loader(Pids(), None, 1))
        first = next(batches)
        print("ready", flush=True)
        while supervisor.received is None:
            time.sleep(0.01)
        print({first} == set(batches), first != os.getpid())
    """
    process = started(body)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert said == "True True\n", errors


def test_every_trainer_is_kept_from_handling_signals():
    """A Trainer that nobody takes over broadcasts inside of a signal handler."""
    for path in CODE:
        calls = {
            node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        }
        if calls & {"Trainer", "instantiate_trainer"}:
            assert "take_over" in calls, path


def test_handlers_are_set_in_one_place():
    alone = {"signals.py"}
    serving = {"server.py", "app.py", "workers.py", "replicas.py"}  # commands without ranks
    for path in CODE:
        if path.name not in alone | serving:
            assert "signal.signal(" not in path.read_text(), path


def test_every_loader_of_the_data_modules_ignores_signals(tmp_path):
    for path in CODE:
        text = path.read_text()
        if "num_workers=" in text and ("DataLoader(\n" in text or "StepLoader(\n" in text):
            assert "worker_init_fn=ignore_in_worker" in text, path
    assert step_loader([0], None, 0).worker_init_fn is not None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("gloo/"), False),
    ],
)
def test_a_broken_connection_is_known_by_its_message(error, lost):
    assert lost_contact(error) == lost
    try:
        raise KeyError("x") from error
    except KeyError as wrapped:
        assert lost_contact(wrapped) == lost


def test_a_killed_loader_process_is_a_sentence():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(UserError, match=r"loads data was killed.*--ckpt_path=auto"):
        with ending_together():
            raise killed
    with pytest.raises(RuntimeError, match="^mistake$"), ending_together():
        raise RuntimeError("mistake")


# Several ranks ------------------------------------------------------------------------------------


def rank_of_two(begun, body, rank, port):
    """A rank of two, that runs `body` with signals handled."""
    code = """
        from datetime import timedelta
        from torch import distributed
        from triptych.training.ranks import announce_failures
        distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
        store = distributed.distributed_c10d._get_default_store()
        with supervisor.handled():
            announce_failures()
            distributed.barrier()
            print("ready", flush=True)
    """
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return begun(
        textwrap.dedent(code) + textwrap.indent(body, "    "), {**where, "RANK": str(rank)}
    )


@pytest.mark.slow
def test_a_rank_that_waits_in_the_store_ends_and_the_others_hear_of_it(begun):
    """While ranks find each other they wait in the store, which stays locked as long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, other = (rank_of_two(begun, body, n, port) for n, body in enumerate(WAITS))
    for process in (first, other):
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # it has come to wait
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 143 and said == "triptych: ended by SIGTERM.\n"
    other.communicate(timeout=30)
    assert other.returncode == 143


WAITS = ('store.get("what nobody sets")\n', "time.sleep(300)\n")


@pytest.mark.slow
def test_a_rank_that_ends_while_it_asks_the_store_ends_well(begun):
    """The store may answer late, on a busy machine or when the first rank has ended."""
    process = begun("""
        from datetime import timedelta
        from torch import distributed
        from triptych.training import ranks
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        asked = threading.Event()
        class Late:
            def check(self, keys):
                asked.set()
                try:
                    store.wait(["nobody sets it"], timedelta(seconds=1))
                except RuntimeError:
                    return False
        ranks.several_ranks = lambda: True
        ranks._store = Late
        ranks.announce_failures()
        asked.wait()
    """)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def matrix(*words, seconds):
    done = processes.run(
        [sys.executable, ROOT / "benchmarks" / "signals.py", *words], seconds=seconds
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_ranks_end_in_any_phase():
    words = ["--ranks", "2", "--strategies", "ddp", "--times", "1", "--only", "3", "--resume", "3"]
    found = matrix(*words, seconds=600)
    assert found["tried"] == found["ended"] == 3 and found["resumed"] == found["resumable"] == 1


@pytest.mark.parametrize(
    ("only", "seed"),
    [
        # every strategy and launcher, 2 and 4 ranks, three signals and two failures, all phases
        pytest.param(5, 2070, marks=pytest.mark.slow),
        pytest.param(12, 0, marks=pytest.mark.sweep),
    ],
)
def test_more_ranks_end_in_every_phase(only, seed):
    words = ["--ranks", "2", "4", "--strategies", "ddp", "fsdp2", "sharded", "--times", "1"]
    words += ["--launchers", "lightning", "torchrun", "--only", str(only), "--seed", str(seed)]
    found = matrix(*words, seconds=1800)
    assert found["tried"] == found["ended"] == only and found["resumed"] == found["resumable"]
