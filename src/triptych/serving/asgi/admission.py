"""Admission control: bounds on the requests in flight and on their memory.

A request takes a ticket before its body is read, and reserves memory before it uses it. If there is
no room, stalled requests (whose client neither sends the body nor reads the response) are dropped,
the longest stalled first, so that slow clients never block fast ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from triptych.serving.asgi.api_errors import APIError

STALL_GRACE = 1.0
"""Seconds after which a stalled request may be dropped for another one."""
FREE_BODY_BYTES = 2**16
"""Bytes of a body that need no reservation, so that small requests are never refused for memory."""


class Ticket:
    """An admitted request: its reserved bytes, and the time since which it has stalled."""

    def __init__(self, admission: Admission, drop: Callable[[], None]) -> None:
        self._admission, self._drop = admission, drop
        self.held = 0
        self.stalled_since: float | None = None

    def reserve(self, size: int) -> None:
        """Reserve more bytes.

        Raises:
            APIError: there is no room now (429), or never (413).
        """
        self._admission.reserve(self, size)

    def hold(self, size: int) -> None:
        """Count bytes that are allocated already; drop stalled requests above the limit."""
        self._admission.make_room(size)
        self._take(size)

    def release(self, size: int) -> None:
        """Release some of the reserved bytes."""
        self._take(-min(size, self.held))

    def stall(self, waiting: bool) -> None:
        """Record that the server waits for the client, or no longer does."""
        self.stalled_since = time.monotonic() if waiting else None

    def close(self) -> None:
        """Release everything; further calls have no effect."""
        self.release(self.held)
        self._admission.tickets.discard(self)

    def drop(self) -> None:
        """Close the connection of the request, and release everything."""
        self.close()
        self._drop()

    def _take(self, size: int) -> None:
        if self in self._admission.tickets:
            self.held += size
            self._admission.held += size


class Admission:
    """The tickets of one server.

    Args:
        max_requests: limit of the requests between the first byte of the body and the last byte of
            the response.
        max_bytes: limit of the bytes of their bodies, images and responses together.
        rejected: callback of each refusal with the reason, "requests" or "memory".
    """

    def __init__(
        self, max_requests: int, max_bytes: int, rejected: Callable[[str], None] = lambda _: None
    ) -> None:
        self.max_requests, self.max_bytes, self.rejected = max_requests, max_bytes, rejected
        self.tickets: set[Ticket] = set()
        self.held = 0

    def admit(self, drop: Callable[[], None]) -> Ticket:
        """Admit a request whose connection `drop` closes.

        Raises:
            APIError: 429; too many requests are in flight.
        """
        while len(self.tickets) >= self.max_requests:
            if not self._drop_one():
                self.rejected("requests")
                raise _busy(f"{self.max_requests} requests are in flight already")
        ticket = Ticket(self, drop)
        self.tickets.add(ticket)
        return ticket

    def reserve(self, ticket: Ticket, size: int) -> None:
        """Reserve more bytes for a ticket. Raises as `Ticket.reserve`."""
        if ticket.held + size > self.max_bytes:
            self.rejected("memory")
            raise APIError(
                413,
                f"this request needs more than the {self.max_bytes / 2**20:g} MB of memory that "
                "this server has for all; send fewer or smaller images.",
                "request_too_large",
                headers={"x-should-retry": "false"},
            )
        if not self.make_room(size):
            self.rejected("memory")
            raise _busy("the memory for requests is in use")
        ticket._take(size)

    def make_room(self, size: int) -> bool:
        """Drop stalled requests until so many bytes are free; return whether they are."""
        while self.held + size > self.max_bytes:
            if not self._drop_one():
                return False
        return True

    def _drop_one(self) -> bool:
        deadline = time.monotonic() - STALL_GRACE
        stalled = [t for t in self.tickets if t.stalled_since is not None]
        longest = min(stalled, key=lambda t: t.stalled_since, default=None)
        if longest is None or longest.stalled_since > deadline:
            return False
        longest.drop()
        return True


def _busy(reason: str) -> APIError:
    return APIError(
        429, f"{reason}; try again in a second.", "server_busy", headers={"retry-after": "1"}
    )
