"""A server under attack: a process of its own, its memory, and a good client that is served."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

FILES = 1024
"""Files that the server may open: what most systems allow."""
MOST_MB = 2048
PATIENCE = 10.0
"""Seconds in which a good request must be answered, with as many tries as its client likes."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Target:
    """A server that runs."""

    port: int
    pid: int
    log: Path
    """Its standard error."""
    peak_mb: float = 0
    waits: list[float] = field(default_factory=list)
    """Seconds that good requests of the current attack took; infinite if they were given up."""
    page: bool = False
    """Whether it is the web page."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[int]:
        """The server and what it started."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    def memory(self) -> float:
        """Resident megabytes, of all processes together."""
        total, own = 0, Path(f"/proc/{self.pid}/cmdline").read_bytes()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if pid != self.pid and Path(f"/proc/{pid}/cmdline").read_bytes() == own:
                    continue  # it is being started, and shares the memory of the server until then
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        self.peak_mb = max(self.peak_mb, total / 2**20)
        return total / 2**20

    def cpu(self) -> float:
        """Seconds of CPU so far, of all processes together."""
        ticks = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(*command: str) -> Iterator[Target]:
    """`triptych COMMAND` with FILES files, until the block ends."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "triptych", *command],
            stdout=subprocess.PIPE,
            stderr=log.fileno(),
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        try:
            found = re.search(r"http://\S+?:(\d+)", process.stdout.readline())
            if found is None:
                raise SystemExit(f"it did not start:\n{Path(log.name).read_text()}")
            page = command[0] == "app"
            yield Target(int(found[1]), process.pid, Path(log.name), page=page)
            if process.poll() is not None:
                raise SystemExit(f"it ended with {process.returncode}")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def png(width: int, height: int) -> bytes:
    """A file of one colour."""
    file = BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def conversation(*files: bytes, **fields: object) -> dict[str, object]:
    """The body of a chat about images."""
    content: list[dict[str, object]] = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()},
        }
        for data in files
    ]
    content.append({"type": "text", "text": "what colour is the circle?"})
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def prompt(**fields: object) -> dict[str, object]:
    """The body of a small request for an image."""
    return {
        "prompt": "a red circle",
        "num_inference_steps": 2,
        "decoder_num_inference_steps": 2,
        "seed": 1,
        **fields,
    }


async def good_request(target: Target, number: int = 0) -> float:
    """Seconds until a good request has its answer, asked again where the server says so."""
    method, path, body = (
        ("POST", "/v1/images/generations", prompt()),
        ("POST", "/v1/chat/completions", conversation(png(48, 48))),
    )[number % 2]
    if target.page:
        method, path, body = "GET", "/config", None
    began = time.monotonic()
    while (waited := time.monotonic() - began) < PATIENCE:
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=target.address, verify=False) as client:
                answer = await client.request(method, path, json=body, timeout=PATIENCE - waited)
            if answer.status_code == 200:
                return time.monotonic() - began
            if answer.status_code not in (429, 503):
                raise AssertionError(f"a good request got {answer.status_code}: {answer.text}")
        await asyncio.sleep(0.5)
    return float("inf")


@contextlib.asynccontextmanager
async def watched(target: Target) -> AsyncIterator[None]:
    """Ask good requests, one a second, and watch the memory while the block runs."""
    target.waits = []

    async def ask() -> None:
        for number in range(10**6):
            target.waits.append(await good_request(target, number))
            await asyncio.sleep(1)

    async def look() -> None:
        while True:
            target.memory()
            await asyncio.sleep(0.1)

    watching = [asyncio.create_task(ask()), asyncio.create_task(look())]
    try:
        await asyncio.sleep(0.2)
        yield
    finally:
        while not (target.waits or watching[0].done()):  # the first one is still on its way
            await asyncio.sleep(0.05)
        for each in watching:
            each.cancel()
        await asyncio.wait(watching)
        if not watching[0].cancelled():
            watching[0].result()  # what was wrong with a good answer
