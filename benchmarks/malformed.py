"""Malformed requests, and checks of the responses to them.

Some are written by hand; the others schemathesis makes of the server's own OpenAPI document.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

GENERATIONS, EDITS, CHATS = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|/usr/|/home/|/root/|site-packages|\b0x[0-9a-f]{6,}|object at|"
    r"pydantic|starlette|fastapi|uvicorn|\bPIL\b|\btorch\b|[a-z](Error|Exception|Body)\b"
)

Send = Callable[[httpx.Client], httpx.Response]


def complaints(answer: httpx.Response) -> list[str]:
    """List the faults of a response to a malformed request."""
    found = []
    if not 400 <= answer.status_code < 500:
        found.append(f"status {answer.status_code}")
    if inside := INSIDE.search(answer.text):
        found.append(f"tells of its inside: {inside[0]!r}")
    try:
        if not answer.json()["error"]["message"].endswith("."):
            found.append("its message is no sentence")
    except (ValueError, KeyError, TypeError):
        found.append("not in OpenAI's shape")
    return [f"{each}: {answer.text[:200]}" for each in found]


def by_hand() -> Iterator[tuple[str, Send]]:
    """(what is wrong with it, how to send it)."""
    yield from _bodies()
    yield from _fields()
    yield from _files()
    yield from _conversations()
    yield from _addresses()


def _raw(path: str, content, **headers: str) -> Send:
    return lambda client: client.post(
        path, content=content() if callable(content) else content, headers=JSON | headers
    )


def _bodies() -> Iterator[tuple[str, Send]]:
    for path in (GENERATIONS, CHATS):
        for name, content in {
            "no body": b"",
            "half an object": b'{"prompt": "a"',
            "not JSON": b"prompt=a",
            "not UTF-8": b'{"prompt": "\xff\xfe"}',
            "null": b"null",
            "a list": b"[]",
            "a text": b'"a"',
            "a number": b"1",
            "NaN": b'{"prompt": NaN, "messages": NaN}',
            "infinity": b'{"prompt": "a", "guidance_scale": Infinity, "messages": Infinity}',
            "too large a number": b'{"prompt": "a", "guidance_scale": 1e999, "messages": 1e999}',
            "a number of a million digits": b'{"prompt": "a", "n": ' + b"9" * 1_000_000 + b"}",
            "nested lists": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            "half a surrogate pair": b'{"prompt": "\\ud800", "messages": ["\\ud800"]}',
            "a null character": b'{"prompt": "a\\u0000", "messages": ["\\u0000"]}',
            "too large": b'{"prompt": "' + b"a" * (21 * 2**20) + b'"}',
        }.items():
            yield f"{name} to {path}", _raw(path, content)
        yield f"chunks without end to {path}", _raw(path, lambda: iter([b"a" * 2**20] * 30))
        for kind in ("text/plain", "application/xml", "application/x-www-form-urlencoded", "nix"):
            yield f"{kind} to {path}", _raw(path, b'{"prompt": "a"}', **{"content-type": kind})


def _fields() -> Iterator[tuple[str, Send]]:
    def image(**fields) -> Send:
        return lambda client: client.post(GENERATIONS, json={"prompt": "a red circle"} | fields)

    for fields in (
        {"prompt": ""}, {"prompt": " \n"}, {"prompt": None}, {"prompt": ["a", "b"]},
        {"prompt": "a " * 20_000}, {"prompt": "circle " * 1_000}, {"prompt": "a\0b"},
        {"n": 0}, {"n": -1}, {"n": 10**30}, {"n": 1.5}, {"n": "2"}, {"n": True}, {"n": 100_000},
        {"size": "0x0"}, {"size": "99999x99999"}, {"size": "-1x-1"}, {"size": 48}, {"size": "x"},
        {"response_format": "url"}, {"output_format": "exe"}, {"background": "transparent"},
        {"seed": -1}, {"seed": 2**64}, {"num_inference_steps": 0},
        {"num_inference_steps": 10**9}, {"guidance_scale": -1},
        {"guidance_scale": 10**400}, {"decoder_num_inference_steps": "many"},
        {"sampler": "../../etc/passwd"},
        {"model": "../../../etc/passwd"}, {"model": "gpt-4"}, {"negative_prompt": "a\0"},
        {"partial_images": 4}, {"stream": "yes"}, {"colour": "red"}, {"__class__": "a"},
        {"guidance_interval": [1]}, {"guidance_interval": [2, 3]}, {"output_compression": 101},
    ):  # fmt: skip
        yield f"{json.dumps(fields)[:60]} for images", image(**fields)


def _chat(**fields) -> Send:
    body = {"messages": [{"role": "user", "content": "hello"}]} | fields
    return lambda client: client.post(CHATS, json=body)


def _conversations() -> Iterator[tuple[str, Send]]:
    for fields in (
        {"messages": []}, {"messages": "hello"}, {"messages": [[]]}, {"messages": None},
        {"messages": [{"role": "wizard", "content": "a"}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"role": "assistant", "content": "a"}]}, {"max_tokens": 0},
        {"messages": [{"role": "user", "content": []}]}, {"max_tokens": 10**12}, {"n": 2},
        {"messages": [{"role": "user", "content": ""}]}, {"temperature": -1}, {"temperature": 3},
        {"messages": [{"role": "user", "content": "a " * 5_000}]}, {"top_p": 0}, {"top_p": 2},
        {"messages": [{"role": "user", "content": "a"}] * 300}, {"stream": 1}, {"logprobs": True},
        {"tools": [{"type": "function"}]}, {"stop": ["a"]}, {"seed": "a"}, {"logit_bias": {"1": 1}},
        {"response_format": {"type": "json_object"}}, {"stream_options": {"include_usage": True}},
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "a"}]},
    ):  # fmt: skip
        yield f"{json.dumps(fields)[:60]} for a chat", _chat(**fields)
    good = base64.b64encode(_png(48, 48)).decode()
    for url in (
        "http://127.0.0.1/a.png", "https://example.com/a.png", "file:///etc/passwd", "", "data:",
        "http://169.254.169.254/latest/meta-data", "ftp://example.com/a", "//example.com/a.png",
        "data:image/png;base64,", "data:image/png;base64,%%%", "data:text/html;base64,YQ==",
        "data:image/png;base64," + good[:60], "data:image/png," + good, f"data:;base64{good}",
        *(
            "data:image/png;base64," + base64.b64encode(data).decode()
            for _, data in _bad_images()
        ),
    ):  # fmt: skip
        part = {"type": "image_url", "image_url": {"url": url}}
        yield f"an image at {url[:40]!r}", _chat(messages=[{"role": "user", "content": [part]}])


def _png(width: int, height: int, data: bytes | None = None) -> bytes:
    """A PNG file whose header says this; `data` in place of black pixels."""
    pixels = zlib.compress(bytes(height * (3 * width + 1))) if data is None else data

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _saved(kind: str, frames: int = 1) -> bytes:
    images = [Image.new("RGB", (48, 48), (80 * n, 0, 0)) for n in range(frames)]
    file = BytesIO()
    images[0].save(file, kind, save_all=frames > 1, append_images=images[1:])
    return file.getvalue()


def _bad_images() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "a text", b"this is no image"
    yield "a script", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    yield "a program", b"\x7fELF" + bytes(200)
    yield "a head alone", b"\x89PNG\r\n\x1a\n"
    yield "a bomb by its header", _png(50_000, 50_000, zlib.compress(bytes(1_000)))
    yield "a bomb", _png(30_000, 1_000, zlib.compress(bytes(90_001_000), 9))
    yield "an image without pixels", _png(48, 48, b"")
    yield "no width", _png(0, 48, zlib.compress(b""))
    yield "a line", _png(10_000, 1)
    yield "half a PNG", _saved("PNG")[:-40]
    yield "half a JPEG", _saved("JPEG")[:300]
    yield "a moving GIF", _saved("GIF", 3)
    yield "a moving WebP", _saved("WEBP", 3)
    yield "a TIFF", _saved("TIFF")
    yield "a BMP", _saved("BMP")
    yield "a PDF", b"%PDF-1.7\n" + bytes(100)


def _files() -> Iterator[tuple[str, Send]]:
    def form(files, **fields: str) -> Send:
        return lambda client: client.post(EDITS, data={"prompt": "blue"} | fields, files=files)

    def named(data: bytes, name: str = "a.png", field: str = "image"):
        return [(field, (name, data, "image/png"))]

    good = _png(48, 48)
    for name, data in _bad_images():
        yield f"{name} as an image", form(named(data))
    for path in ("../../../../etc/passwd", "/etc/passwd", "..\\..\\a", "a\0.png", "a" * 5_000):
        yield f"no image named {path[:20]!r}", form(named(b"no image", path))
    yield "no image", form([("nothing", ("a.txt", b"a"))])
    yield "a mask", form(named(good) + named(good, field="mask"))
    yield "too many images", form(named(good, field="image[]") * 17)
    yield "too many results", form(named(good, field="image[]") * 3, n="10")
    yield "a text as an image", lambda c: c.post(EDITS, data={"prompt": "a", "image": "b"})
    yield "a file as a prompt", lambda c: c.post(EDITS, files={"prompt": b"a", "image": good})
    for fields in ({"n": "many"}, {"n": "0"}, {"seed": "-1"}, {"prompt": ""}, {"size": "1x1"},
                   {"colour": "red"}, {"guidance_scale": "nan"},
                   {"stream": "perhaps"}):  # fmt: skip
        yield f"{fields} for an edit", form(named(good), **fields)
    yield "JSON for an edit", lambda client: client.post(EDITS, json={"prompt": "a"})
    for kind, content in (
        ("multipart/form-data", b"a"),
        ("multipart/form-data; boundary=", b"--a"),
        ("multipart/form-data; boundary=a", b"--a\r\nnonsense"),
        ("multipart/form-data; boundary=a", b"--b--\r\n"),
        ("multipart/form-data; boundary=a", b"--a\r\n" + b"x: y\r\n" * 5_000 + b"\r\n--a--"),
        ("multipart/form-data; boundary=" + "a" * 1_000, b"--a"),
    ):
        yield f"a broken form, {content[:20]!r}", _raw(EDITS, content, **{"content-type": kind})
    yield "a form of many fields", form(named(good), **{f"f{n}": "1" for n in range(200)})
    yield "too large an image", form(named(good + bytes(21 * 2**20)))


def _addresses() -> Iterator[tuple[str, Send]]:
    for method, path in (
        ("GET", GENERATIONS), ("PUT", GENERATIONS), ("DELETE", CHATS), ("OPTIONS", EDITS),
        ("PATCH", "/v1/models"), ("POST", "/health"), ("BREW", "/metrics"), ("GET", "/"),
        ("GET", "/v1"), ("GET", "/v1/models/other"), ("GET", "/v1/models/..%2f..%2fetc%2fpasswd"),
        ("GET", "/../../etc/passwd"), ("GET", "/%2e%2e/%2e%2e/etc/passwd"), ("GET", "/%00"),
        ("GET", "/docs"), ("GET", "/v1/files"), ("POST", "/v1/embeddings"),
        ("POST", GENERATIONS + "/"), ("GET", "/v1//models"), ("GET", "/" + "a" * 10_000),
    ):  # fmt: skip
        yield f"{method} {path[:40]}", lambda client, m=method, p=path: client.request(m, p)
    for value in ("", "Bearer", "Bearer wrong", "Basic c2VjcmV0", "Bearer \xe9", "key"):
        header = {"authorization": value.encode("latin-1")}
        yield f"the key {value!r}", lambda c, h=header: c.get("/v1/models", headers=h)


def generated(address: str, key: str, number: int) -> Iterator[tuple[str, list[str]]]:
    """(request, what is wrong with its answer) for `number` requests that schemathesis makes.

    They break the document of the server at `address`; the same ones every time.
    """
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    headers = {"Authorization": f"Bearer {key}"}
    results: list[tuple[str, list[str]]] = []

    def attack(operation, share: int, first: int) -> None:
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @seed(first)
        @settings(
            max_examples=share, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=strategy)
        def send(case) -> None:
            answer = case.call(base_url=address, headers=headers, timeout=60)
            found = []
            try:
                case.validate_response(answer, checks=CHECKS, headers=headers)
            except BaseExceptionGroup as failures:
                found += [str(each)[:300] for each in failures.exceptions]
            if not (found or answer.status_code >= 300):
                return  # what it changed did not matter: this one was well formed
            found += complaints(httpx.Response(answer.status_code, text=answer.text))
            results.append((f"{operation.label} {case.body!r:.200}", found))

        try:
            send()
        except ValueError as error:
            # It cannot tell whether some of its forms with files are wrong, and ends the round.
            if "Unsupported type" not in str(error):
                raise

    most = min(20, -(-number // 3))  # a round; some give fewer
    for round_number in range(3 * -(-number // most)):
        path = (GENERATIONS, EDITS, CHATS)[round_number % 3]
        attack(schema[path]["POST"], min(most, number - len(results)), round_number)
        if len(results) >= number:
            break
    yield from results
