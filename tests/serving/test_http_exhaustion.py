"""Work, memory and connections of the server are bounded, and released at the end of each request.

`make attack` does the same to a server of its own at full size.
"""

import asyncio
import json
import logging
import socket
import sys
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from processes import run
from servers import FakePipeline, running, until

from triptych.serving.asgi import admission, connections, host_check, log_limits
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.http.app import Limits
from triptych.serving.images import image_decoder
from triptych.serving.images.image_input import read_request_image

GENERATE = "/v1/images/generations"
CHAT = "/v1/chat/completions"


def file(size=(60, 48), kind="PNG", **options) -> bytes:
    made = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made, kind, **options)
    return made.getvalue()


def post(path, body=b"", **headers) -> bytes:
    """A request as it is sent."""
    given = {"host": "localhost", "content-type": "application/json", "content-length": len(body)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(server, begin: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20)
    made.sendall(begin)
    return made


def read(connection) -> bytes:
    """All that comes until the connection is closed."""
    try:
        return b"".join(iter(lambda: connection.recv(2**16), b""))
    except ConnectionResetError:
        return b""


def nothing_is_held(server) -> bool:
    return not server.admission.tickets and server.admission.held == 0


@pytest.fixture(scope="module")
def server():
    with running(FakePipeline()) as server:
        yield server


@pytest.fixture
def short(monkeypatch):
    """Clients get half a second for everything."""
    for name in (
        "uvicorn_protocol.HEADER_TIMEOUT",
        "uvicorn_protocol.MAX_STALL_SECONDS",
        "request_body.MAX_STALL_SECONDS",
    ):
        monkeypatch.setattr(f"triptych.serving.asgi.{name}", 0.5)
    monkeypatch.setattr("triptych.serving.asgi.uvicorn_protocol.MIN_BYTES_PER_SECOND", 2**30)


def image_chat(data: bytes) -> dict:
    import base64

    url = "data:image/png;base64," + base64.b64encode(data).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]}


# Admission ----------------------------------------------------------------------------------------


def test_places_and_bytes_are_bounded_and_given_back():
    held = admission.Admission(2, 100)
    first, second = held.admit(lambda: None), held.admit(lambda: None)
    with pytest.raises(APIError, match="2 requests are in flight") as caught:
        held.admit(lambda: None)
    assert caught.value.status == 429 and caught.value.headers["retry-after"]
    first.reserve(60)
    with pytest.raises(APIError, match="in use") as caught:
        second.reserve(60)
    assert caught.value.status == 429
    with pytest.raises(APIError, match="more than") as caught:
        first.reserve(41)
    assert caught.value.status == 413
    first.close()
    first.close()
    second.reserve(60)
    second.release(50)
    assert held.held == 10 and held.tickets == {second}


def test_clients_that_keep_the_server_waiting_make_room_for_others(monkeypatch):
    monkeypatch.setattr(admission, "STALL_GRACE", 0.05)
    dropped = []
    held = admission.Admission(2, 100)
    slow, works = (held.admit(lambda name=name: dropped.append(name)) for name in "ab")
    works.reserve(30)
    slow.reserve(60)
    slow.stall(True)
    with pytest.raises(APIError):
        held.admit(lambda: None)  # it has just begun to wait
    time.sleep(0.06)
    third = held.admit(lambda: None)
    assert dropped == ["a"] and held.held == 30
    slow.reserve(50)  # gone already: nothing is counted for it
    third.reserve(70)
    assert held.held == 100


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(GENERATE, json.dumps({"prompt": "a"}).encode()), 200),
        (post(GENERATE, json.dumps({"prompt": "bad"}).encode()), 400),
        (post(GENERATE, json.dumps({"prompt": "crash"}).encode()), 500),
        (post(GENERATE, b"{"), 400),
        (post(GENERATE, b"", content_length=10**9), 413),
        (post(GENERATE, b"", content_length=30 * 2**20), 413),
        (post(GENERATE, b"{}", content_encoding="gzip"), 415),
        (post("/nowhere", b"{}"), 404),
        (post(GENERATE, b"{}", host="evil.example"), 421),
        (post(GENERATE, b"{}", origin="null"), 403),
        (post(CHAT, json.dumps(image_chat(file())).encode()), 200),
        (post(CHAT, json.dumps(image_chat(b"nothing")).encode()), 400),
        (post(GENERATE, b"[" + b"{}," * 2**16 + b"{}]"), 400),
        (post(GENERATE, b'{"a":' * 2**15), 400),
        (post(GENERATE, b"", content_length=5), 408),
        (post(GENERATE, b"{", content_length=50_000), 408),
        (post(GENERATE, b"5\r\n{", content_length="0\r\ntransfer-encoding: chunked"), 408),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", 408),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 2**17, 400),
        (b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\n", 400),
        (b"\x16\x03\x01\0\xa5\x01\0\0", 400),
    ],
)
def test_whatever_is_sent_is_answered_and_given_back(server, short, request_, status):
    with connect(
        server, request_.replace(b"localhost\r\n", b"localhost\r\nconnection: close\r\n")
    ) as raw:
        if status == 413:
            raw.shutdown(socket.SHUT_WR)
        assert read(raw).split()[1:2] in ([str(status).encode()], [])
    until(lambda: nothing_is_held(server))


def test_a_client_that_leaves_at_any_point_gives_everything_back(server):
    requests = [
        post(GENERATE, b"{", content_length=2**20),
        post(CHAT, json.dumps(image_chat(file((2000, 2000)))).encode()),
        post(GENERATE, json.dumps({"prompt": "a", "stream": True, "partial_images": 3}).encode()),
        post(GENERATE, json.dumps({"prompt": "a", "n": 10, "size": "2048x2048"}).encode()),
    ]
    for request in requests:
        for seconds in (0, 0.05, 0.3):
            with connect(server, request):
                time.sleep(seconds)
            until(lambda: nothing_is_held(server) and server.scheduler.idle)


def test_large_bodies_find_no_room_and_small_ones_do(server, short):
    with running(FakePipeline(), limits=Limits(max_memory_mb=8)) as small:
        waiting = [connect(small, post(CHAT, b"{", content_length=2**20)) for _ in range(2)]
        until(lambda: small.admission.held > 4 * 2**20)
        with small.http() as client:
            refused = client.post(CHAT, json=image_chat(bytes(2**20)))
            assert refused.status_code in (400, 429)  # 400: another had to go for it
            assert client.post(CHAT, json=image_chat(bytes(2**22))).status_code == 413
            assert client.post(GENERATE, json={"prompt": "a"}).status_code == 200
        for each in waiting:
            each.close()
        until(lambda: nothing_is_held(small))


def test_a_client_that_does_not_read_is_cut_off(server, short):
    request = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connect(server) as raw, server.http() as client:
        raw.sendall(1000 * request)
        time.sleep(1.5)
        assert len(read(raw)) < 500 * len(client.get("/openapi.json").content)


# Connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /health HTTP/1.1\r\nhost: loc",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        post(GENERATE, b"{", content_length=100),
    ],
)
def test_connections_beyond_the_bound_replace_those_that_wait(begin, monkeypatch):
    monkeypatch.setattr(admission, "STALL_GRACE", 0.0)
    with running(FakePipeline(), max_connections=8, limits=Limits(max_queue=2, max_batch=2)) as few:
        held = [connect(few, begin) for _ in range(40)]
        with few.http() as client:
            assert client.post(GENERATE, json={"prompt": "a"}).status_code == 200
        for each in held:
            each.close()


def test_the_default_bound_leaves_half_of_the_files():
    assert connections.default_max_connections() <= connections.MAX_CONNECTIONS


def test_accept_errors_are_logged_at_a_limited_rate(caplog):
    loop = asyncio.new_event_loop()
    log_limits.limit_logs()
    context = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(24, "full"),
    }
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            log_limits.on_loop_error(loop, context)
    loop.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be accepted: full; retrying every second"
    ]


# Decoding -----------------------------------------------------------------------------------------


def decode(files, size=16, limit=10**9):
    """Decode files in a new event loop."""

    async def work():
        made = image_decoder.ImageDecoder()
        ticket = admission.Admission(1, limit).admit(lambda: None)
        try:
            return await made.read(files, size, [f"image {n}" for n in range(len(files))], ticket)
        finally:
            await made.close()

    return in_time(work())


def in_time(work, seconds=60):
    """Result of a coroutine, in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(work, seconds))


@pytest.mark.parametrize("size", [None, 16, 48])
def test_images_are_those_of_the_reader(size):
    files = [file(), file((48, 60), "JPEG"), file((48, 48), "WEBP", lossless=True)]
    for made, data in zip(decode(files, size), files, strict=True):
        expected = read_request_image(data, size, "image")
        assert made.size == expected.size and made.tobytes() == expected.tobytes()


def test_an_image_that_takes_too_long_is_refused_and_the_next_is_read(monkeypatch):
    large = file((1200, 1200), "WEBP", lossless=True, quality=0, method=0)
    monkeypatch.setattr(image_decoder, "MAX_CPU_SECONDS", 0.02)
    with pytest.raises(APIError, match="seconds to decode") as caught:
        decode([large])
    assert (caught.value.status, caught.value.code) == (400, "image_too_slow")
    monkeypatch.setattr(image_decoder, "MAX_CPU_SECONDS", 4.0)
    assert decode([large])[0].size == (16, 16)


def test_a_worker_is_small():
    """It would take seconds to start, and hundreds of megabytes, with torch."""
    code = "import sys, triptych.serving.images.decode_worker; print('torch' in sys.modules)"
    ended = run([sys.executable, "-c", code], check=True)
    assert ended.stdout == "False\n"


def test_memory_is_reserved_for_decoded_images():
    with pytest.raises(APIError, match="more than") as caught:
        decode([file((400, 400))], None, limit=400_000)
    assert caught.value.status == 413


def test_killed_worker_fails_only_its_own_image():
    async def work():
        made = image_decoder.ImageDecoder()
        ticket = admission.Admission(1, 10**9).admit(lambda: None)
        large = file((1500, 1500), "WEBP", lossless=True, quality=0, method=0)
        first = asyncio.create_task(made.read([large], 16, ["image"], ticket))
        while not made._running:  # `in_time` limits this
            await asyncio.sleep(0.01)
        for worker in made._running:
            worker.kill()
        (answer,) = await asyncio.gather(first, return_exceptions=True)
        again = await made.read([file()], 16, ["image"], ticket)
        await made.close()
        return answer, again

    answer, again = in_time(work())
    assert again[0].size == (16, 16)
    assert not isinstance(answer, BaseException) or answer.status == 400


ENDLESS = """
import sys
sys.stdin.buffer.readline()
print('{"pixels": 1, "length": 0}')
print('{"size": [16, 16], "length": 1000000000}', flush=True)
while True:
    sys.stdout.buffer.write(bytes(100_000))
"""


def test_closing_does_not_wait_for_unread_output(monkeypatch):
    """asyncio reports the end of a process to `wait` only after all of its output has been read."""
    monkeypatch.setattr(image_decoder, "COMMAND", (sys.executable, "-c", ENDLESS))

    async def work():
        made, reserved = image_decoder.ImageDecoder(), asyncio.Event()
        ticket = SimpleNamespace(reserve=lambda _: reserved.set())
        reading = asyncio.create_task(made.read([b""], 16, ["image"], ticket))
        await reserved.wait()
        await asyncio.sleep(0.1)  # more is buffered than the stream reads ahead
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await made.close()
        return [worker.returncode for worker in made._running]

    assert in_time(work()) == [-9]


# Hosts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "passes"),
    [
        ("127.0.0.1", (), "localhost", True),
        ("127.0.0.1", (), "LOCALHOST:8000", True),
        ("127.0.0.1", (), "127.0.0.1:80", True),
        ("127.0.0.1", (), "[::1]:80", True),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "127.0.0.1.evil.example:80", False),
        ("127.0.0.1", (), "localhost:80@evil.example", False),
        ("127.0.0.1", (), "localhost evil", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", (), "192.168.0.1", False),
        ("192.168.0.1", (), "192.168.0.1:80", True),
        ("box.example", (), "box.example", True),
        ("0.0.0.0", (), "192.168.0.1", True),
        ("::", (), "[2001:db8::1]:80", True),
        ("0.0.0.0", (), socket.gethostname(), True),
        ("0.0.0.0", (), "evil.example", False),
        ("127.0.0.1", ("models.example",), "models.example:443", True),
        ("127.0.0.1", ("models.example",), "other.example", False),
        ("127.0.0.1", ("*",), "anything", True),
    ],
)
def test_hosts(bound, allowed, host, passes):
    check = host_check.AllowedHosts(bound, allowed).check
    if passes:
        check({b"host": host.encode(), b"origin": f"http://{host}".encode()})
    else:
        with pytest.raises(APIError) as caught:
            check({b"host": host.encode()})
        assert caught.value.status == 421
    check({})


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ((), "http://localhost:8000", True),
        ((), "http://localhost:3000", False),
        ((), "http://evil.example", False),
        ((), "null", False),
        ((), "", False),
        (("pages.example",), "https://pages.example", True),
        (("*",), "http://evil.example", True),
    ],
)
def test_origins(allowed, origin, passes):
    headers = {b"host": b"localhost:8000", b"origin": origin.encode()}
    if passes:
        host_check.AllowedHosts(allowed=allowed).check(headers)
    else:
        with pytest.raises(APIError) as caught:
            host_check.AllowedHosts(allowed=allowed).check(headers)
        assert caught.value.status == 403


# Numbers ------------------------------------------------------------------------------------------

WRONG = (1.5, True, "2", float("nan"), float("inf"), 1e300, -1, 10**30, [1], {})


@pytest.mark.parametrize("value", [each for each in WRONG if each == each and each != float("inf")])
def test_every_whole_number_of_the_server_is_strict_and_bounded(server, value):
    with server.http() as client:
        for path in (GENERATE, CHAT):
            schema = client.get("/openapi.json").json()["components"]["schemas"]
            fields = schema["GenerationBody" if path == GENERATE else "ChatBody"]["properties"]
            whole = [
                name
                for name, field in fields.items()
                if any(each.get("type") == "integer" for each in field.get("anyOf", [field]))
            ]
            assert whole
            for name in whole:
                body = {"prompt": "a"} if path == GENERATE else image_chat(file())
                assert client.post(path, json=body | {name: value}).status_code == 400, name


def test_every_number_of_the_page_is_passed_on_unchanged_or_refused(tmp_path):
    import gradio

    from triptych.inference.pipeline import UnifiedPipeline
    from triptych.serving.webui.app import build
    from triptych.serving.webui.models import Models
    from triptych.serving.webui.session import Page
    from triptych.serving.webui.votes import Votes

    sources = Models({"tiny": lambda: UnifiedPipeline.from_pretrained("tiny")})
    blocks = build(Page(sources, Votes(tmp_path / "votes.jsonl"), [], tmp_path))
    found = [
        block
        for block in blocks.blocks.values()
        if isinstance(block, gradio.Number | gradio.Slider)
    ]
    assert len(found) > 10
    for control in found:
        fractions = isinstance(control, gradio.Slider) and control.step != 1
        fractions = fractions or getattr(control, "precision", 0) is None
        for value in WRONG:
            if not (fractions and value == 1.5):
                with pytest.raises(gradio.Error, match=control.label):
                    control.preprocess(value)
        assert control.preprocess(3 if control.maximum >= 3 else 1) in (1, 3)
