"""Processes that a test starts: each ends within a time limit, by itself or killed.

Use `run` where only the result counts, `started` for a process that the test talks to, and `forked`
with `exit_status` for work in a fork of the test itself.
"""

import os
import signal
import subprocess
import threading
import time
import traceback
from contextlib import contextmanager, suppress


@contextmanager
def limited(process, seconds):
    """Kill `process` and its children, and fail, if the block takes longer than `seconds`.

    Whatever the block waits for then returns: output of the process, or its end.
    """
    expired = threading.Event()

    def expire():
        expired.set()
        _kill(process)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if expired.is_set():
            words = " ".join(map(str, process.args))
            raise AssertionError(f"killed after {seconds} seconds: {words[:300]}")


@contextmanager
def started(command, seconds=120, **options):
    """`subprocess.Popen`, killed with its children at the end of the block.

    Args:
        seconds: time limit of the block, see `limited`.
        options: of `subprocess.Popen`.
    """
    options = {"start_new_session": True} | options
    process = subprocess.Popen([*map(str, command)], **options)
    try:
        with limited(process, seconds):
            yield process
    finally:
        _kill(process)
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def run(command, seconds=120, check=False, **options):
    """`subprocess.run` of a command, its output captured as text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with started(command, seconds, **options) as process:
        out, err = process.communicate()
    assert not (check and process.returncode), err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forked(work):
    """Fork a process that calls `work()` and ends; returns its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(pid, seconds=120):
    """Exit status of a forked process, minus the number of the signal that ended it.

    It is killed, and the test fails, after `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"a forked process was killed after {seconds} seconds")
        time.sleep(0.005)


def _kill(process):
    """Kill a process that leads a group, and all of its group."""
    with suppress(ProcessLookupError, PermissionError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
