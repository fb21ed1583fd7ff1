"""Ray Serve and LitServe with 1 and 2 replicas: python benchmarks/serve_replicas.py

Needs `pip install 'triptych[replicas]' litserve`. Each server of the tiny preset, and `triptych
serve` without replicas, gets the same load in several rounds: clients that ask for an image each,
the next one when they have the last. Then one of two replicas is killed under this load. One thread
for each replica, on however many cores the machine has. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from reporting import machine, versions, write_result

HERE = Path(__file__).parent
SERVERS = {"triptych serve": [1], "ray": [1, 2], "litserve": [1, 2]}
START_LIMIT = 300
"""Seconds in which a server must answer."""
FULL_SIZE = 0.9
"""A new process of this share of the killed one's memory has its model."""


def descendants(pid: int) -> list[int]:
    """Process ids of a process and all that it started."""
    try:
        own = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []  # it has ended
    return [pid, *(each for child in own for each in descendants(child))]


def megabytes(pid: int) -> float:
    """Memory of a process, that which it shares divided by the number of its users."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def largest(pid: int, number: int) -> list[int]:
    """The processes with a model: the largest ones."""
    return sorted(descendants(pid), key=megabytes, reverse=True)[:number]


@contextlib.contextmanager
def started(engine: str, replicas: int) -> Iterator[tuple[str, int, float]]:
    """Address, process id, and seconds until the first image."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if engine == "triptych serve":
        command = [sys.executable, "-m", "triptych", "serve", "--port", port, "--device", "cpu"]
    else:
        command = [sys.executable, HERE / f"replicas_{engine}.py", str(replicas), port]
    begin, address = time.monotonic(), f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                body = {"prompt": "a red circle", "seed": 1}
                path = f"{address}/v1/images/generations"
                if httpx.post(path, json=body, timeout=300).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > begin + START_LIMIT:
                raise SystemExit(f"{engine} did not start")
            time.sleep(0.2)
        yield address, process.pid, time.monotonic() - begin
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its processes behind


async def load(address: str, clients: int, seconds: float, limit: float) -> tuple[int, Counter]:
    """Ask for `seconds`; the number of images, and of each kind of failure."""
    images, failures, end = 0, Counter(), time.monotonic() + seconds

    async def ask(number: int, http: httpx.AsyncClient) -> None:
        nonlocal images
        for seed in range(number, 10**6, clients):
            if time.monotonic() > end:
                return
            try:
                body = {"prompt": "a red circle", "seed": seed}
                answer = await http.post("/v1/images/generations", json=body)
            except httpx.HTTPError as error:
                failures[type(error).__name__] += 1
                continue
            if answer.status_code == 200:
                images += 1
            else:
                failures[answer.status_code] += 1
                await asyncio.sleep(0.1)

    async with httpx.AsyncClient(base_url=address, timeout=limit) as http:
        await asyncio.gather(*(ask(number, http) for number in range(clients)))
    return images, failures


async def failure(address: str, pid: int, clients: int, seconds: float) -> dict[str, object]:
    """Kill one of two replicas under load."""

    async def kill() -> float | None:
        await asyncio.sleep(seconds / 10)
        killed = largest(pid, 2)[0]
        before, size = set(descendants(pid)), megabytes(killed)
        os.kill(killed, signal.SIGKILL)
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            await asyncio.sleep(0.5)
            if any(megabytes(each) > FULL_SIZE * size for each in {*descendants(pid)} - before):
                return round(time.monotonic() - begin, 1)
        return None

    (images, failures), recovered = await asyncio.gather(
        load(address, clients, seconds, seconds / 2), kill()
    )
    names = {str(name): number for name, number in failures.items()}
    return {"images": images, "failed": names, "seconds_until_two_again": recovered}


def measure(engine: str, replicas: int, parsed: argparse.Namespace) -> dict[str, object]:
    """All figures of a server."""
    with started(engine, replicas) as (address, pid, seconds):
        asyncio.run(load(address, parsed.clients, 2, 120))  # warm
        rates = [
            asyncio.run(load(address, parsed.clients, parsed.seconds, 120))[0] / parsed.seconds
            for _ in range(parsed.rounds)
        ]
        found = {
            "start_s": round(seconds, 1),
            "images_per_s": round(statistics.median(rates), 1),
            "rounds": [round(rate, 1) for rate in rates],
            "memory_mb": round(sum(map(megabytes, descendants(pid)))),
            "processes": len(descendants(pid)),
            "memory_of_models_mb": round(sum(map(megabytes, largest(pid, replicas)))),
        }
        if replicas == 2:
            found["one_killed"] = asyncio.run(
                failure(address, pid, parsed.clients, parsed.failure_seconds)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--failure-seconds", type=float, default=90)
    parser.add_argument("--out", type=Path, help="JSON file beside standard output")
    parsed = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    facts = {"machine": machine(), "versions": versions("torch", "fastapi", "ray", "litserve")}
    figures: dict[str, dict[str, object]] = {}
    for engine, numbers in SERVERS.items():
        for replicas in numbers:
            found = figures[f"{engine} {replicas}"] = measure(engine, replicas, parsed)
            print(f"{engine:15} {replicas} {found}", flush=True)
    write_result(parsed.out, figures, **facts)


if __name__ == "__main__":
    main()
