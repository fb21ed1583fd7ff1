"""One command as several processes, a shard each: `--processes N`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from triptych.utils.errors import UserError


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The command line without a flag and its value."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == flag:
            skip = True
        elif not argument.startswith(f"{flag}="):
            kept.append(argument)
    return kept


def run_shards(
    command: str,
    arguments: Sequence[str],
    number: int,
    stdin: str | None,
    on_line: Callable[[str], None],
) -> None:
    """Run `triptych COMMAND ARGUMENTS --shard K/N` for all K at once.

    Each is given a GPU of its own, in turn, or its share of the CPU's cores. Ctrl-C ends all.

    Args:
        stdin: what each reads; None: nothing.
        on_line: told of every line of their standard output.

    Raises:
        UserError: one of them failed; what the others made is kept.
    """
    shards = [_start(command, arguments, k, number) for k in range(number)]
    said: list[list[str]] = [[] for _ in shards]
    readers = [
        threading.Thread(target=_read, args=(shard, stdin, on_line, lines), daemon=True)
        for shard, lines in zip(shards, said, strict=True)
    ]
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for reader in readers:
            reader.start()
        for shard in shards:
            shard.wait()
        for reader in readers:
            reader.join()
    finally:
        _end(shards)
        signal.signal(signal.SIGTERM, previous)
    failed = [k for k, shard in enumerate(shards) if shard.returncode]
    if failed:
        why = (said[failed[0]] or ["it said nothing"])[-1].removeprefix("triptych: ")
        raise UserError(
            f"shard {failed[0] + 1}/{number} failed (status {shards[failed[0]].returncode}): {why} "
            f"{number - len(failed)} of {number} shards are done; the same command goes on."
        )


def _start(command: str, arguments: Sequence[str], shard: int, number: int) -> subprocess.Popen:
    return subprocess.Popen(
        # -P: no file of the current folder is in the place of a module
        [
            *(sys.executable, "-P", "-m", "triptych", command),
            *arguments,
            f"--shard={shard + 1}/{number}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_share(shard, number)},
    )


def _share(shard: int, number: int) -> dict[str, str]:
    """A GPU each, where there are any; else no more threads in all than cores."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(n) for n in range(_gpus())]
    share = {"CUDA_VISIBLE_DEVICES": gpus[shard % len(gpus)]} if gpus else {}
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    return {"OMP_NUM_THREADS": str(threads), **share}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _read(
    shard: subprocess.Popen, stdin: str | None, on_line: Callable[[str], None], said: list[str]
) -> None:
    """Hand on what a shard prints, and keep what it complains of."""
    errors = threading.Thread(target=lambda: said.extend(line.strip() for line in shard.stderr))
    errors.start()
    try:
        shard.stdin.write(stdin or "")
        shard.stdin.close()
    except BrokenPipeError:  # it failed before it read all
        pass
    for line in shard.stdout:
        on_line(line.rstrip("\n"))
    errors.join()


def _end(shards: Sequence[subprocess.Popen]) -> None:
    """None is left running."""
    for shard in shards:
        if shard.poll() is None:
            shard.send_signal(signal.SIGINT)
    for shard in shards:
        try:
            shard.wait(timeout=10)
        except subprocess.TimeoutExpired:
            shard.kill()
            shard.wait()
