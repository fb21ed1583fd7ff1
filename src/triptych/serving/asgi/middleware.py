"""ASGI middleware: Host check, admission, API key, body limits, request ids and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.serving.asgi.admission import FREE_BODY_BYTES, Admission, Ticket
from triptych.serving.asgi.api_errors import APIError, bad_request
from triptych.serving.asgi.host_check import AllowedHosts
from triptych.serving.asgi.request_body import ClientLeft, RequestBody

log = logging.getLogger("triptych.serving")
CLIENT_CLOSED_REQUEST = 499
"""Status of nginx for a client that disconnected, used in metrics only."""
PUBLIC_PATHS = ("/health", "/metrics", "/openapi.json")
"""Addresses that need no API key."""
BODY_DRAIN_FACTOR = 8
"""Maximum size of a refused body that is read and discarded, in units of the body limit."""
FORM_COPIES, JSON_COPIES = 3, 4
"""Bytes of memory for each byte of a body, with the copies that parsing makes."""
MAX_JSON_VALUES = 2**16
"""Maximum number of values in a JSON body, each of which becomes an object, and possibly an error,
of a hundred times its size."""


class RequestMiddleware:
    """ASGI middleware: admission, allowed hosts, API key, body size limit and timeout.

    Args:
        answered: callback with the route, method, status and seconds of each request.
        admission: bounds on all requests together.
        hosts: names by which clients may address the server.
        api_key: expected key in `Authorization: Bearer`; None allows every client.
        max_body: limit of the bytes of a body.
        timeout: limit of the seconds from a request to the end of its response; the deadline is in
            `scope["state"]["deadline"]`, as time of the event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        answered: Callable[[str, str, int, float], None],
        admission: Admission,
        hosts: AllowedHosts,
        api_key: str | None,
        max_body: int,
        timeout: float,
    ) -> None:
        self.app, self.answered, self.admission, self.hosts = app, answered, admission, hosts
        self.key = None if api_key is None else api_key.encode()
        self.max_body, self.timeout = max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # websockets are not supported
        started, request_id, status = time.monotonic(), f"req_{secrets.token_hex(12)}", 0
        complete = False

        async def send_response(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        state = scope.setdefault("state", {})
        state["deadline"] = asyncio.get_running_loop().time() + self.timeout
        connection = state["connection"]
        ticket: Ticket | None = None
        headers = {name.lower(): value for name, value in scope["headers"]}
        incoming = RequestBody(headers, receive, self.timeout)
        try:
            try:
                self.hosts.check(headers)
                state["ticket"] = ticket = self._admit(incoming, connection)
                body = await self._read(scope, headers, incoming, ticket)
            except APIError as error:
                raise await self._refusal(error, incoming, connection, ticket) from None
            unread = [body]
            del body
            await self._serve(
                scope, unread, receive=receive, send=send_response, complete=lambda: complete
            )
        except APIError as error:
            await error.response()(scope, receive, send_response)
        except ClientLeft:
            status = CLIENT_CLOSED_REQUEST
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # in the middle of a response, whose connection must break
            error = APIError(
                500, f"the server failed at this request; its log names it {request_id}.", "failed"
            )
            await error.response()(scope, receive, send_response)
        finally:
            if ticket is not None:
                await self._leave(connection, ticket)
            route = getattr(scope.get("route"), "path", "other")
            self.answered(route, _method(scope), status, time.monotonic() - started)

    def _admit(self, incoming: RequestBody, connection: Any) -> Ticket | None:
        """Admit a request with a body; one without needs no ticket.

        Raises:
            APIError: 429.
        """
        if incoming.complete:
            return None
        connection.ticket = self.admission.admit(connection.abort)
        return connection.ticket

    async def _read(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        incoming: RequestBody,
        ticket: Ticket | None,
    ) -> bytes:
        """Read the body of an authorized request, whose memory is reserved before it arrives, or as
        its chunks arrive.

        Raises:
            APIError: 400, 401, 408, 413, 415, 429.
            ClientLeft: the client disconnected.
        """
        if scope["path"] not in PUBLIC_PATHS and not self._authorized(headers):
            raise APIError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise APIError(
                415, "the body is compressed; send it uncompressed.", "unsupported_encoding"
            )
        if ticket is None:
            return b""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        copies = FORM_COPIES if kind == b"multipart/form-data" else JSON_COPIES
        self._reserve(ticket, incoming.declared, copies)
        body = bytearray()
        ticket.stall(True)
        async for chunk in incoming.chunks():
            body += chunk
            self._reserve(ticket, len(body), copies)
        ticket.stall(False)
        if copies == JSON_COPIES and sum(map(body.count, b"[{,")) > MAX_JSON_VALUES:
            raise bad_request(None, f"the body has more than {MAX_JSON_VALUES} values; send fewer.")
        return bytes(body)

    def _reserve(self, ticket: Ticket, size: int, copies: int) -> None:
        """Reserve memory for a body of this size, if it is not reserved yet.

        Raises:
            APIError: 413, 429.
        """
        if size > self.max_body:
            raise APIError(
                413,
                f"the body is larger than {self.max_body / 2**20:g} MB; send smaller images.",
                "body_too_large",
            )
        if (more := copies * max(0, size - FREE_BODY_BYTES) - ticket.held) > 0:
            ticket.reserve(more)

    async def _refusal(
        self, error: APIError, incoming: RequestBody, connection: Any, ticket: Ticket | None
    ) -> APIError:
        """Prepare an error as the response to a request whose body may still be arriving.

        Raises:
            ClientLeft: the client disconnected.
        """
        if ticket is not None:
            self._close(connection, ticket)  # the rest of the body is discarded
        if error.status == 408 or not await incoming.discard(BODY_DRAIN_FACTOR * self.max_body):
            error.headers["connection"] = "close"
        return error

    async def _leave(self, connection: Any, ticket: Ticket) -> None:
        """Release what the request holds, after its response was sent."""
        try:
            await connection.flushed()
        finally:
            self._close(connection, ticket)

    def _close(self, connection: Any, ticket: Ticket) -> None:
        ticket.close()
        if connection.ticket is ticket:
            connection.ticket = None

    async def _serve(
        self,
        scope: Scope,
        unread: list[bytes],
        *,
        receive: Receive,
        send: Send,
        complete: Callable[[], bool],
    ) -> None:
        """Run the application, and cancel it if the client disconnects.

        Args:
            unread: the body in a list, from which it is removed, so that its memory can be freed.
            complete: function that returns whether the response is complete.

        Raises:
            ClientLeft: the client disconnected before the end of the response.
        """
        disconnected = asyncio.create_task(_until_disconnected(receive))

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.wait([disconnected])
            return {"type": "http.disconnect"}

        response = asyncio.create_task(self.app(scope, replay, send))
        try:
            await asyncio.wait([response, disconnected], return_when=asyncio.FIRST_COMPLETED)
            if not response.done() and not complete():
                raise ClientLeft
            await response
        finally:
            disconnected.cancel()
            response.cancel()
            await asyncio.wait([response])

    def _authorized(self, headers: dict[bytes, bytes]) -> bool:
        if self.key is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self.key) and scheme.lower() == b"bearer"


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _method(scope: Scope) -> str:
    """Return the method label of the metrics, so that unknown methods create no series."""
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
    return scope["method"] if scope["method"] in methods else "other"
