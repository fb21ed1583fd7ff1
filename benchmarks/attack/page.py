"""Attacks on `triptych app`. Each returns the violated guarantee, or None."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Iterator

from attack import server
from attack.server import expect, post, status
from attack.target import Target, started

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


@contextlib.contextmanager
def page() -> Iterator[Target]:
    """The page on a free port."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        with started("app", "--port", str(port), "--votes", f"{folder}/votes.jsonl") as target:
            yield target


async def other_hosts(target: Target) -> str | None:
    answers = [
        await status(target, b"GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n"),
        await status(target, post(JOIN, b"{}", host="evil.example")),
    ]
    origins = ("http://evil.example", "null")
    foreign = [await status(target, post(JOIN, b"{}", origin=origin)) for origin in origins]
    return expect(answers, 421) or expect(foreign, 403)


async def large_bodies(target: Target) -> str | None:
    request = post(JOIN, b"[" + b" " * (40 * 2**20) + b"]")
    upload = post(UPLOAD, bytes(40 * 2**20), "multipart/form-data; boundary=b")
    answers = await asyncio.gather(*(status(target, each) for each in [request, upload] * 5))
    return expect(answers, 413)


ATTACKS: tuple[server.Attack, ...] = (
    server.half_headers,
    server.slow_headers,
    server.idle_connections,
    server.garbage,
    server.huge_headers,
    other_hosts,
    large_bodies,
)
