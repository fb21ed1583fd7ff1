"""HTTP protocol of uvicorn with time limits of everything that a client does."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from triptych.serving.asgi.admission import Ticket
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.asgi.connections import Connections

HEADER_TIMEOUT = 10.0
"""Limit of the seconds from the connection, or the last response, to the headers of a request."""
MAX_STALL_SECONDS = 10.0
"""Limit of the seconds of reading or sending, beyond those that MIN_BYTES_PER_SECOND allows."""
MIN_BYTES_PER_SECOND = 2**15
"""Minimum rate at which a client must read and send."""
NOT_HTTP = APIError(400, "this is not a valid HTTP/1.1 request.", "bad_request")
TOO_SLOW = APIError(
    408,
    f"the headers did not arrive within {HEADER_TIMEOUT:g} seconds; send them faster.",
    "too_slow",
)


class TimedProtocol(H11Protocol):
    """A connection with time limits and a small write buffer.

    Requests get their connection as `scope["state"]["connection"]`.
    """

    def __init__(self, *args, connections: Connections, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = self.app_state | {"connection": self}
        self.ticket: Ticket | None = None
        """Ticket of the admitted request in progress."""
        self._connections = connections
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # Writing is paused while anything is unsent, so that the timer below covers all of it.
        transport.set_write_buffer_limits(high=0)
        self._connections.add(self)
        self._update_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_header_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_header_timer()

    def abort(self) -> None:
        self.transport.abort()

    async def flushed(self) -> None:
        """Wait until all written data is sent, or the connection is closed."""
        await self.flow.drain()

    def _update_header_timer(self) -> None:
        """Run the header timer while no request is in progress."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._connections.work(self)
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif not self.transport.is_closing():
            self._connections.wait(self)
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._headers_too_slow)

    def _headers_too_slow(self) -> None:
        # An idle connection without a byte of the next request is closed silently, as by uvicorn.
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

    def _refuse(self, error: APIError) -> None:
        """Respond in the format of all other errors, where uvicorn sends plain text, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of a response, or after the last one
            return
        body = json.dumps(error.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = h11.Response(
            status_code=error.status, headers=list(headers.items()), reason=error.reason
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()
