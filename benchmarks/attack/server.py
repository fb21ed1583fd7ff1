"""Attacks on `triptych serve`. Each returns the violated guarantee, or None."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from io import BytesIO

import httpx
import numpy
from PIL import Image

from attack.target import Target, conversation, png, prompt

Attack = Callable[[Target], Awaitable[str | None]]
IMAGES, EDITS, CHATS = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
FEW_STEPS = {"prompt": "blue", "num_inference_steps": "2", "decoder_num_inference_steps": "2"}
SECONDS = 4.0
"""For which what is held open is held open."""


async def connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of which the system buffers little."""
    return await asyncio.open_connection("127.0.0.1", target.port, limit=2**12)


def post(path: str, body: bytes, kind: str = "application/json", **headers: object) -> bytes:
    """A request as it is sent."""
    given = {"host": "localhost", "content-type": kind, "content-length": len(body)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def status(target: Target, request: bytes | Iterable[bytes], seconds: float = 20) -> int:
    """The status of the answer to a request; 0 if the connection ends without one."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await connect(target)
            with contextlib.suppress(ConnectionError):
                for part in [request] if isinstance(request, bytes) else request:
                    writer.write(part)
                    await writer.drain()
            line = await reader.readline()
            writer.close()
            return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
    except (OSError, TimeoutError, ValueError):
        return 0


async def held(target: Target, number: int, begin: bytes, trickle: bytes = b"") -> None:
    """Open so many connections, send a beginning on each, hold them; send more, bit by bit."""
    writers = []
    for _ in range(number):
        with contextlib.suppress(OSError):
            async with asyncio.timeout(2):
                writers.append((await connect(target))[1])
                writers[-1].write(begin)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for writer in writers:
            if trickle and not writer.is_closing():
                writer.write(trickle)
        await asyncio.sleep(0.5)
    for writer in writers:
        writer.transport.abort()


async def sent(target: Target, number: int, request: bytes, seconds: float = SECONDS) -> None:
    """So many clients send a whole request at once, read nothing, and leave after a time."""

    async def one() -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                reader, writer = await connect(target)
                reader._transport.pause_reading()
                try:
                    writer.write(request)
                    await writer.drain()
                    await asyncio.sleep(seconds)
                finally:
                    writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(number)))


async def idle(target: Target, seconds: float = 8) -> str | None:
    """Whether the server has stopped to work, a while after everyone left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = target.cpu()
        await asyncio.sleep(1)
        if target.cpu() - before < 0.6:  # the good client's request takes a part of it
            return None
    return f"it still works {seconds:g} s after all clients have left"


def expect(found: Iterable[int], *allowed: int) -> str | None:
    """Faults among statuses."""
    wrong = sorted({each for each in found if each not in allowed})
    return f"answered {wrong}" if wrong else None


# Files --------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def large() -> list[bytes]:
    """Files of 16.7 million pixels."""
    image = Image.new("RGB", (4096, 4096), "red")
    return [encoded(image, "PNG"), encoded(image, "JPEG", progressive=True)]


def noisy(side: int) -> Image.Image:
    pixels = numpy.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def many_scans(number: int = 2000) -> bytes:
    """A progressive JPEG that repeats a scan of all its pixels."""
    data = encoded(Image.new("L", (4096, 4096), 128), "JPEG", progressive=True)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    last = data[scans[-1] : -2]
    return data[: scans[-1]] + last * number + data[-2:]


# Attacks ------------------------------------------------------------------------------------------


async def many_large_images(target: Target) -> str | None:
    """60 clients, 16 images of 16.7 megapixels each, who leave."""
    body = json.dumps(conversation(*(large() * 8))).encode()
    await sent(target, 60, post(CHATS, body), 10)
    return await idle(target)


async def many_large_edits(target: Target) -> str | None:
    """30 clients with forms of 16 images of 16.7 megapixels."""
    await sent(target, 30, form([("image[]", data) for data in large() * 8]), 6)
    return await idle(target)


def form(files: list[tuple[str, bytes]], fields: dict[str, str] | None = None) -> bytes:
    parts = [
        f'--b\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
        + data
        for name, data in files
    ]
    parts += [
        f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
        for name, value in ({"prompt": "blue"} | (fields or {})).items()
    ]
    return post(EDITS, b"\r\n".join([*parts, b"--b--\r\n"]), "multipart/form-data; boundary=b")


async def jpeg_of_many_scans(target: Target) -> str | None:
    body = json.dumps(conversation(many_scans())).encode()
    return expect([await status(target, post(CHATS, body)) for _ in range(2)], 400)


async def slow_images(target: Target) -> str | None:
    """Files that take a decoder long although their headers say nothing of it; clients leave."""
    file = encoded(noisy(2048), "WEBP", lossless=True, quality=0, method=0)
    body = json.dumps(conversation(file)).encode()
    await sent(target, 40, post(CHATS, body), 6)
    return await idle(target)


async def broken_images(target: Target) -> str | None:
    cut = [data[: len(data) // 2] for data in (*large(), encoded(noisy(512), "WEBP"))]
    answers = [
        await status(target, post(CHATS, json.dumps(conversation(data)).encode())) for data in cut
    ]
    return expect(answers, 400)


async def half_headers(target: Target) -> str | None:
    await held(target, 1200, b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\n")


async def slow_headers(target: Target) -> str | None:
    await held(target, 600, b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b"x: y\r\n")


async def nothing_sent(target: Target) -> str | None:
    await held(target, 1200, b"")


async def idle_connections(target: Target) -> str | None:
    await held(target, 1200, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")


async def half_bodies(target: Target) -> str | None:
    request = post(IMAGES, b"", content_length=100)
    await held(target, 1100, request)


async def large_bodies_announced(target: Target) -> str | None:
    request = post(CHATS, b"", content_length=20 * 2**20)
    await held(target, 300, request)


async def slow_bodies(target: Target) -> str | None:
    request = post(CHATS, b'{"messages"', content_length=10 * 2**20)
    await held(target, 300, request, b" " * 100)


async def large_bodies(target: Target) -> str | None:
    """Bodies that come fast and whole, but for their last byte."""
    request = post(CHATS, b" " * (8 * 2**20), content_length=8 * 2**20 + 1)
    await sent(target, 60, request, 6)


async def endless_chunks(target: Target) -> str | None:
    head = post(CHATS, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    answers = await asyncio.gather(*(status(target, [head, *[chunk] * 4000]) for _ in range(8)))
    return expect(answers, 413, 429, 0)


async def unread_answers(target: Target) -> str | None:
    """Large answers that nobody reads."""
    request = post(IMAGES, json.dumps(prompt(n=10, size="2048x2048")).encode())
    await sent(target, 100, request, 14)


async def unread_streams(target: Target) -> str | None:
    body = prompt(n=10, stream=True, partial_images=3, decoder_steps=8, size="1024x1024")
    await sent(target, 60, post(IMAGES, json.dumps(body).encode()), 8)


async def streams_left(target: Target) -> str | None:
    """Many streams, whose clients leave at once."""
    body = post(CHATS, json.dumps(conversation(stream=True, max_tokens=4096)).encode())
    await asyncio.gather(*(sent(target, 60, body, 1) for _ in range(3)))
    return await idle(target)


async def long_work_left(target: Target) -> str | None:
    body = post(IMAGES, json.dumps(prompt(n=10, steps=250, decoder_steps=250)).encode())
    await sent(target, 80, body, 1)
    return await idle(target)


async def pipelined(target: Target) -> str | None:
    """Requests one after another, whose answers nobody reads."""
    await sent(target, 50, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 20_000)


async def huge_headers(target: Target) -> str | None:
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    answers = [
        await status(target, head + b"x: " + b"a" * 2**20 + b"\r\n\r\n"),
        await status(target, head + b"x: y\r\n" * 100_000 + b"\r\n"),
        await status(target, b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    ]
    return expect(answers, 400, 0)


async def many_parts(target: Target) -> str | None:
    files = form([("image[]", png(8, 8))] * 5000)
    fields = form([], {f"f{number}": "1" for number in range(5000)})
    return expect([await status(target, files), await status(target, fields)], 400)


async def large_files(target: Target) -> str | None:
    request = form([("image", bytes(19 * 2**20))])
    return expect(await asyncio.gather(*(status(target, request) for _ in range(20))), 400, 429)


async def compressed_bodies(target: Target) -> str | None:
    kinds = ("gzip", "deflate", "br", "zstd")
    requests = [post(IMAGES, bytes(1000), content_encoding=kind) for kind in kinds]
    return expect([await status(target, request) for request in requests], 415)


async def deep_json(target: Target) -> str | None:
    bodies = [
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}",
        json.dumps({f"f{n}": 1 for n in range(10**6)}).encode(),
        b'{"prompt": "a", "messages": [' + b"{}," * 10**6 + b"{}]}",
    ]
    return expect(
        [await status(target, post(path, body)) for body in bodies for path in (IMAGES, CHATS)],
        400,
    )


async def garbage(target: Target) -> str | None:
    """No HTTP, and the beginning of TLS."""
    tls = bytes.fromhex("16030100a50100009f0303") + bytes(150)
    bodies = [
        b"\0" * 1000,
        b"nonsense\r\n\r\n",
        tls,
        b"\r\n" * 1000,
        b"GET /nowhere HTTP/9.9\r\n\r\n",
    ]
    for _ in range(100):
        answers = await asyncio.gather(*(status(target, body, 2) for body in bodies))
        if wrong := expect(answers, 400, 404, 0):
            return wrong
        if target.log.stat().st_size > 2**17:
            return "its log grows with each"
    return None


async def other_hosts(target: Target) -> str | None:
    names = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1]x", "a b")
    requests = [b"GET /v1/models HTTP/1.1\r\nhost: %b\r\n\r\n" % name.encode() for name in names]
    body = json.dumps(prompt()).encode()
    requests += [post(IMAGES, body, host="evil.example")]
    answers = [await status(target, request) for request in requests]
    origins = (
        "http://evil.example",
        "null",
        "http://localhost:1",
        "https://localhost.evil.example",
    )
    foreign = [await status(target, post(IMAGES, body, origin=origin)) for origin in origins]
    return expect(answers, 400, 421) or expect(foreign, 403)


async def huge_numbers(target: Target) -> str | None:
    fields = [
        {name: value}
        for name in ("n", "steps", "decoder_steps", "seed", "partial_images")
        for value in (10**8, 10**30, 1.5, True, "2", -1, 1e300)
        if (name, value) != ("seed", 10**8)
    ]
    fields += [{"size": "99999x99999"}, {"guidance_scale": 1e300}]
    requests = [post(IMAGES, json.dumps(prompt(**each)).encode()) for each in fields]
    requests.append(post(CHATS, json.dumps(conversation(max_tokens=10**9)).encode()))
    return expect([await status(target, request) for request in requests], 400)


async def methods(target: Target) -> str | None:
    """A flood of requests without bodies."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await asyncio.gather(
            *(
                status(target, f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(), 5)
                for method in ("HEAD", "OPTIONS", "BREW", "GET")
                for path in (IMAGES, "/health", "/openapi.json", "/metrics", "/")
            )
        )
    return None


async def mixed_requests(target: Target) -> str | None:
    """A thousand requests of all kinds; the server's memory is the same after them as before."""
    draw, todo, sizes = random.Random(0), iter(range(1000)), []
    streamed, image = conversation(png(64, 48), stream=True), png(300, 200)

    async def ask(client: httpx.AsyncClient) -> None:
        for number in todo:
            kind = draw.randrange(6)
            if kind == 0:
                await client.post(CHATS, json=streamed)
            elif kind == 1:
                await client.post(EDITS, data=FEW_STEPS, files={"image": image})
            elif kind == 2:
                await client.post(CHATS, json=conversation(bytes(100_000)))
            elif kind == 3:
                await client.get("/metrics")
            else:
                await client.post(IMAGES, json=prompt(n=1 + kind % 2, size="256x256"))
            if number > 300:
                sizes.append(target.memory())

    async with httpx.AsyncClient(base_url=target.address, timeout=60, verify=False) as client:
        await asyncio.gather(*(ask(client) for _ in range(8)))
    before, after = (statistics.median(part) for part in (sizes[:200], sizes[-200:]))
    if after > 1.03 * before:
        return f"its memory grew from {before:.0f} to {after:.0f} MB"
    return None


ATTACKS: tuple[Attack, ...] = (
    many_large_images,
    many_large_edits,
    jpeg_of_many_scans,
    slow_images,
    broken_images,
    half_headers,
    slow_headers,
    nothing_sent,
    idle_connections,
    half_bodies,
    large_bodies_announced,
    slow_bodies,
    large_bodies,
    endless_chunks,
    unread_answers,
    unread_streams,
    streams_left,
    long_work_left,
    pipelined,
    huge_headers,
    many_parts,
    large_files,
    compressed_bodies,
    deep_json,
    garbage,
    other_hosts,
    huge_numbers,
    methods,
    mixed_requests,
)
