"""Parts of a benchmark, each in a process of its own.

A part that fails, is killed or takes too long is a failed part, and no more: the memory of each is
given back, and the others run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_part(
    command: Sequence[str | Path], seconds: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a part; its result is the last line of its output that is a JSON object.

    Args:
        command: command line of the part.
        seconds: time limit, after which it is killed with its children.
        env: environment; None is that of this process.

    Returns:
        The part's own figures, `seconds`, `peak_gb` (largest resident set of the process, in 1e9
        bytes), and `error` if it failed.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [*map(str, command)], stdout=out, stderr=err, env=env, start_new_session=True
        )
        status, usage = _wait(process.pid, began + seconds)
        process.returncode = status
        result = _last_object(_text(out))
        result |= {
            "seconds": round(time.monotonic() - began, 1),
            "peak_gb": round(usage * 1024 / 1e9, 2),
        }
        if status is None:
            result["error"] = f"not done within {seconds:.0f} s"
        elif status:
            result.setdefault("error", _reason(status, _text(err)))
    return result


def _wait(pid: int, deadline: float) -> tuple[int | None, int]:
    """Exit status, None if it had to be killed, and peak resident set in KiB."""
    killed = False
    try:
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return None if killed else code, usage.ru_maxrss
            if not killed and time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                killed = True
            time.sleep(0.05)
    except BaseException:  # Ctrl-C: the part has a session of its own, and would go on
        os.killpg(pid, signal.SIGKILL)
        raise


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _reason(status: int, errors: str) -> str:
    """The last line that was printed, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else f"exit status {status}"
