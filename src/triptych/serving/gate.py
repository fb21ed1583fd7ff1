"""What every request passes: its number, the key, the limit of its body; and every answer's end."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.serving.desk import ClientLeft
from triptych.serving.metrics import Metrics
from triptych.serving.problems import Problem

log = logging.getLogger("triptych.serving")
OPEN = ("/health", "/metrics", "/openapi.json")
"""Addresses that ask for no key."""
PATIENCE = 8
"""A body is read to its end, and thrown away, up to so many times the limit: a client that is cut
off while it sends would not read the answer. Beyond, it is cut off."""


class Gate:
    """ASGI middleware.

    Args:
        api_key: what `Authorization: Bearer` must hold; None lets everyone in.
        max_body: bytes of a request's body.
        timeout: seconds in which a body must have come.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, api_key: str | None, max_body: int, timeout: float
    ) -> None:
        self.app, self.metrics = app, metrics
        self.key = None if api_key is None else api_key.encode()
        self.max_body, self.timeout = max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, number, status = time.monotonic(), f"req_{secrets.token_hex(12)}", 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        except ClientLeft:
            status = 499  # nginx' number, for the metrics alone
        except Exception:
            log.exception("request %s failed", number)
            if status:
                raise  # in the middle of an answer: the connection breaks, as it must
            problem = Problem(
                500, f"the server failed at this request; its log names it {number}.", "failed"
            )
            await problem.response()(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, _method(scope), status).inc()
            self.metrics.latency.labels(route).observe(time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        welcome = scope["path"] in OPEN or self._knows_key(headers)
        body = await self._body(headers, receive, keep=welcome)
        if not welcome:
            raise Problem(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _knows_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.key is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self.key) and scheme.lower() == b"bearer"

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, keep: bool) -> bytes:
        """The whole body; only read to its end if it is not to be kept, or too large.

        Raises:
            Problem: 413, 408.
            ClientLeft: the connection was closed before its end.
        """
        most = PATIENCE * self.max_body
        declared = headers.get(b"content-length", b"0")
        large = len(declared) > 18 or (declared.isdigit() and int(declared) > self.max_body)
        if large and (b"expect" in headers or len(declared) > 18 or int(declared) > most):
            raise self._too_large(close=True)  # nothing was sent yet, or too much is coming
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.timeout):
                more = True
                while more:
                    message: dict[str, Any] = dict(await receive())
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size > most:
                        raise self._too_large(close=True)
                    if keep and size <= self.max_body:
                        body += part
        except TimeoutError as error:
            raise Problem(
                408,
                f"the body did not come within {self.timeout:g} seconds; send it faster.",
                "body_too_slow",
                headers={"connection": "close"},
            ) from error
        if size > self.max_body:
            raise self._too_large()
        return bytes(body)

    def _too_large(self, close: bool = False) -> Problem:
        return Problem(
            413,
            f"the body is larger than {self.max_body / 2**20:g} MB; send smaller pictures.",
            "body_too_large",
            headers={"connection": "close"} if close else {},
        )


def _method(scope: Scope) -> str:
    """Of the metrics: made-up methods must not make up series."""
    known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
    return scope["method"] if scope["method"] in known else "other"
