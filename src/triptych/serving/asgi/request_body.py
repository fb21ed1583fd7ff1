"""Receiving of a request body with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.types import Receive

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.asgi.uvicorn_protocol import MAX_STALL_SECONDS, MIN_BYTES_PER_SECOND


class ClientLeft(Exception):
    """The client disconnected."""


class RequestBody:
    """A body as it arrives, with a time limit that grows with the bytes received.

    Args:
        headers: headers of the request, with names in lower case.
        timeout: limit of the seconds for any body.
    """

    def __init__(self, headers: Mapping[bytes, bytes], receive: Receive, timeout: float) -> None:
        self._receive, self._timeout = receive, timeout
        length = headers.get(b"content-length", b"0")
        self.declared = int(length) if length.isdigit() and len(length) < 19 else 10**18
        """Size in bytes by the headers; 0 if they do not state it."""
        self.complete = not self.declared and b"transfer-encoding" not in headers
        """Whether the whole body was received."""
        self._expects_continue = b"expect" in headers
        """Whether the client waits for "100 Continue" before it sends the body."""
        self._started, self._size = asyncio.get_running_loop().time(), 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the remaining chunks of the body.

        Raises:
            APIError: 408; the body arrives too slowly.
            ClientLeft: the client disconnected.
        """
        self._expects_continue = False
        while not self.complete:
            seconds = min(self._timeout, MAX_STALL_SECONDS + self._size / MIN_BYTES_PER_SECOND)
            try:
                async with asyncio.timeout_at(self._started + seconds):
                    message = await self._receive()
            except TimeoutError as error:
                raise APIError(
                    408,
                    f"the body did not arrive within {seconds:.0f} seconds; send it faster.",
                    "body_too_slow",
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            self._size += len(chunk)
            self.complete = not message.get("more_body", False)
            yield chunk

    async def discard(self, max_bytes: int) -> bool:
        """Receive and discard the rest of the body, up to a limit; return whether it ended.

        A client that is cut off while it sends would not read the response.

        Raises:
            ClientLeft: the client disconnected.
        """
        if self.declared > max_bytes or (self._expects_continue and not self.complete):
            return False
        try:
            async for _ in self.chunks():
                if self._size > max_bytes:
                    return False
        except APIError:
            return False
        return True
