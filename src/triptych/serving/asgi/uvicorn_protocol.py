"""HTTP on a connection: uvicorn's, with a time limit on everything that a client does."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from triptych.serving.asgi.admission import Ticket
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.asgi.connections import Connections

HEADER_TIMEOUT = 10.0
"""Seconds in which the headers of a request must have come, from the connection or the last answer.
"""
MAX_STALL_SECONDS = 10.0
"""Limit of the seconds for which a client neither reads nor sends, beyond what
MIN_BYTES_PER_SECOND allows."""
MIN_BYTES_PER_SECOND = 2**15
"""Bytes a second at which a client must read and send, at least."""
NOT_HTTP = APIError(400, "this is no HTTP/1.1 request that can be read.", "bad_request")
TOO_SLOW = APIError(
    408,
    f"the headers did not come within {HEADER_TIMEOUT:g} seconds; send them faster.",
    "too_slow",
)


class Protocol(H11Protocol):
    """A connection that waits for its client a limited time, and holds little for it.

    Each request finds its connection as `scope["state"]["connection"]`.
    """

    def __init__(self, *args, connections: Connections, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = self.app_state | {"connection": self}
        self.ticket: Ticket | None = None
        """Ticket of the admitted request that is being answered."""
        self._bound = connections
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # Writing is paused as long as anything is unsent: the timer below sees all of it.
        transport.set_write_buffer_limits(high=0)
        self._bound.add(self)
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bound.remove(self)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def abort(self) -> None:
        self.transport.abort()

    async def flushed(self) -> None:
        """Wait until all that was written is sent, or the connection is closed."""
        await self.flow.drain()

    def _follow(self) -> None:
        """Run the time for headers while none of a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._bound.work(self)
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif not self.transport.is_closing():
            self._bound.wait(self)
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._headers_too_slow)

    def _headers_too_slow(self) -> None:
        # Without a byte of the next request an idle connection ends, as at uvicorn's own limit.
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(TOO_SLOW)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = MAX_STALL_SECONDS + self.transport.get_write_buffer_size() / MIN_BYTES_PER_SECOND
        self._write_timer = self.loop.call_later(seconds, self.abort)
        if self.ticket is not None:
            self.ticket.stall(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self.ticket is not None:
            self.ticket.stall(False)

    def send_400_response(self, msg: str) -> None:
        self._refuse(NOT_HTTP)

    def _refuse(self, problem: APIError) -> None:
        """Answer in the shape of all other errors, and close; uvicorn writes a line of text."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer, or after the last
            return
        body = json.dumps(problem.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = h11.Response(
            status_code=problem.status, headers=list(headers.items()), reason=problem.reason
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()
