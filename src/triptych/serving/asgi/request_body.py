"""The body of a request while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.types import Receive

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.asgi.uvicorn_protocol import MAX_STALL_SECONDS, MIN_BYTES_PER_SECOND


class ClientLeft(Exception):
    """Nobody is there to be answered."""


class RequestBody:
    """The body of a request as it arrives, with a time limit that grows with the bytes received.

    Args:
        headers: headers of the request, their names in lower case.
        timeout: time limit in seconds even for a fast body.
    """

    def __init__(self, headers: Mapping[bytes, bytes], receive: Receive, timeout: float) -> None:
        self._receive, self._timeout = receive, timeout
        length = headers.get(b"content-length", b"0")
        self.declared = int(length) if length.isdigit() and len(length) < 19 else 10**18
        """Bytes that the headers announce; 0 where they do not."""
        self.complete = not self.declared and b"transfer-encoding" not in headers
        """Whether all of it has come."""
        self._waits = b"expect" in headers
        """Whether the client waits for "100 Continue" before it sends the body."""
        self._started, self._size = asyncio.get_running_loop().time(), 0

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the remaining parts of the body.

        Raises:
            APIError: 408; it comes too slowly.
            ClientLeft: the connection was closed before its end.
        """
        self._waits = False
        while not self.complete:
            seconds = min(self._timeout, MAX_STALL_SECONDS + self._size / MIN_BYTES_PER_SECOND)
            try:
                async with asyncio.timeout_at(self._started + seconds):
                    message = await self._receive()
            except TimeoutError as error:
                raise APIError(
                    408,
                    f"the body did not come within {seconds:.0f} seconds; send it faster.",
                    "body_too_slow",
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part = message.get("body", b"")
            self._size += len(part)
            self.complete = not message.get("more_body", False)
            yield part

    async def discard(self, most: int) -> bool:
        """Throw away what is still to come, if it is not more than `most` bytes; whether it has
        come: a client that is cut off while it sends would not read the answer.

        Raises:
            ClientLeft: the connection was closed before its end.
        """
        if self.declared > most or (self._waits and not self.complete):
            return False
        try:
            async for _ in self.parts():
                if self._size > most:
                    return False
        except APIError:
            return False
        return True
