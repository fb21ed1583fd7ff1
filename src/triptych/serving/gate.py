"""ASGI middleware: Host check, admission, API key, body limits, request ids and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.serving.admission import SMALL, Admission, Ticket
from triptych.serving.desk import ClientLeft
from triptych.serving.hosts import Hosts
from triptych.serving.metrics import Metrics
from triptych.serving.problems import Problem, wrong
from triptych.serving.protocol import PATIENCE, SLOWEST

log = logging.getLogger("triptych.serving")
OPEN = ("/health", "/metrics", "/openapi.json")
"""Addresses that ask for no key."""
DRAINED = 8
"""Times the limit of a body up to which a refused one is read, and thrown away."""
FORM_COPIES, JSON_COPIES = 3, 4
"""Bytes of memory for each byte of a body: itself, and its copies while it is read."""
MOST_VALUES = 2**16
"""In a body of JSON: each becomes an object, and may become an error, of a hundred times its size.
"""


class Gate:
    """ASGI middleware.

    Args:
        admission: what all requests together may hold.
        hosts: names by which the server may be addressed.
        api_key: what `Authorization: Bearer` must hold; None lets everyone in.
        max_body: bytes of a request's body.
        timeout: seconds from a request to the end of its answer; the deadline is in
            scope["state"]["deadline"], as time of the event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        admission: Admission,
        hosts: Hosts,
        api_key: str | None,
        max_body: int,
        timeout: float,
    ) -> None:
        self.app, self.metrics, self.admission, self.hosts = app, metrics, admission, hosts
        self.key = None if api_key is None else api_key.encode()
        self.max_body, self.timeout = max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket, which nothing here has
        started, number, status = time.monotonic(), f"req_{secrets.token_hex(12)}", 0
        done = False

        async def answer(message: Message) -> None:
            nonlocal status, done
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            done = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        state = scope.setdefault("state", {})
        state["deadline"] = asyncio.get_running_loop().time() + self.timeout
        connection = state["connection"]
        ticket: Ticket | None = None
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self.hosts.check(headers)
            ticket = await self._admit(headers, connection, receive)
            state["ticket"] = ticket
            await self._serve(
                scope,
                await self._read(scope, headers, ticket, receive),
                receive,
                answer,
                lambda: done,
            )
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        except ClientLeft:
            status = 499  # nginx' number, for the metrics alone
            self.metrics.cancelled.inc()
        except Exception:
            log.exception("request %s failed", number)
            if status:
                raise  # in the middle of an answer: the connection breaks, as it must
            problem = Problem(
                500, f"the server failed at this request; its log names it {number}.", "failed"
            )
            await problem.response()(scope, receive, answer)
        finally:
            if ticket is not None:
                await self._leave(connection, ticket)
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, _method(scope), status).inc()
            self.metrics.latency.labels(route).observe(time.monotonic() - started)

    async def _admit(
        self, headers: dict[bytes, bytes], connection: Any, receive: Receive
    ) -> Ticket | None:
        """A ticket for a request with a body; none for one without, which is answered at once.

        Raises:
            Problem: 429.
            ClientLeft: the connection was closed before the end of the body.
        """
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return None
        try:
            connection.ticket = self.admission.admit(connection.abort)
        except Problem as problem:
            raise await self._refusal(problem, headers, receive) from None
        return connection.ticket

    async def _leave(self, connection: Any, ticket: Ticket) -> None:
        """Give back what the request holds, when its answer has left this process."""
        try:
            await connection.flushed()
        finally:
            ticket.close()
            if connection.ticket is ticket:
                connection.ticket = None

    async def _read(
        self, scope: Scope, headers: dict[bytes, bytes], ticket: Ticket | None, receive: Receive
    ) -> bytes:
        """The body of a request that may pass.

        Raises:
            Problem: 400, 401, 408, 413, 415, 429.
            ClientLeft: the connection was closed before the end of the body.
        """
        try:
            if scope["path"] not in OPEN and not self._knows_key(headers):
                raise Problem(
                    401,
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY.",
                    "invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise Problem(
                    415, "the body is compressed; send it as it is.", "unsupported_encoding"
                )
            if ticket is None:
                return b""
            ticket.stall(True)
            body = await self._body(headers, ticket, receive)
            ticket.stall(False)
            return body
        except Problem as problem:
            if ticket is not None:
                ticket.close()  # what still comes is not kept
            raise await self._refusal(problem, headers, receive) from None

    async def _body(self, headers: dict[bytes, bytes], ticket: Ticket, receive: Receive) -> bytes:
        """The whole body. Memory for it is reserved before it comes, or as it comes in chunks.

        Raises:
            Problem: 400, 408, 413, 429.
            ClientLeft: the connection was closed before its end.
        """
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        copies = FORM_COPIES if kind == b"multipart/form-data" else JSON_COPIES
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if size > self.max_body:
                raise Problem(
                    413,
                    f"the body is larger than {self.max_body / 2**20:g} MB; send smaller pictures.",
                    "body_too_large",
                )
            if (wanted := copies * max(0, size - SMALL)) > reserved:
                ticket.reserve(wanted - reserved)
                reserved = wanted

        reserve(_declared(headers))
        body = bytearray()
        async for part in self._parts(receive):
            body += part
            reserve(len(body))
        if copies == JSON_COPIES and sum(map(body.count, b"[{,")) > MOST_VALUES:
            raise wrong(None, f"the body has more than {MOST_VALUES} values; send fewer.")
        return bytes(body)

    async def _parts(self, receive: Receive) -> AsyncIterator[bytes]:
        """The parts of a body as they come.

        Raises:
            Problem: 408; it comes too slowly.
            ClientLeft: the connection was closed before its end.
        """
        loop = asyncio.get_running_loop()
        started, size, more = loop.time(), 0, True
        while more:
            seconds = min(self.timeout, PATIENCE + size / SLOWEST)
            try:
                async with asyncio.timeout_at(started + seconds):
                    message = await receive()
            except TimeoutError as error:
                raise Problem(
                    408,
                    f"the body did not come within {seconds:.0f} seconds; send it faster.",
                    "body_too_slow",
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            yield part

    async def _refusal(
        self, problem: Problem, headers: dict[bytes, bytes], receive: Receive
    ) -> Problem:
        """The problem, after the rest of the body was read and thrown away: a client that is cut
        off while it sends would not read the answer. Bodies that are too large or too slow even
        for that, or were not begun, are not read, and the connection ends.

        Raises:
            ClientLeft: the connection was closed before the end of the body.
        """
        most, size = DRAINED * self.max_body, 0
        try:
            ends = problem.status == 408 or b"expect" in headers or _declared(headers) > most
            if not ends:
                async for part in self._parts(receive):
                    if (size := size + len(part)) > most:
                        ends = True
                        break
        except Problem:
            ends = True
        if ends:
            problem.headers["connection"] = "close"
        return problem

    async def _serve(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, done: Callable[[], bool]
    ) -> None:
        """Let the application answer; stop it, wherever it is, when the client leaves.

        Raises:
            ClientLeft: before the end of the answer.
        """
        left = asyncio.create_task(_until_left(receive))
        unread = [body]
        del body

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.wait([left])
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self.app(scope, replay, send))
        try:
            await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not done():
                raise ClientLeft
            await work
        finally:
            left.cancel()
            work.cancel()
            await asyncio.wait([work])

    def _knows_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.key is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self.key) and scheme.lower() == b"bearer"


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _declared(headers: dict[bytes, bytes]) -> int:
    """Bytes of the body as its headers say; 0 where they do not."""
    value = headers.get(b"content-length", b"0")
    if len(value) > 18:
        return 10**18
    return int(value) if value.isdigit() else 0


def _method(scope: Scope) -> str:
    """Of the metrics: made-up methods must not make up series."""
    known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
    return scope["method"] if scope["method"] in known else "other"
