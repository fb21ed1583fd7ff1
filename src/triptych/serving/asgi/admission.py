"""Admission control: bounds on the requests in flight and on the bytes that they hold.

A request takes a ticket before its body is read, and reserves memory before it uses it. When there
is no room, those whose clients keep the server waiting (a body that does not come, an answer that
is not read) are dropped first, the longest waiting one before the others: slow clients never keep
out one that is not slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from triptych.serving.asgi.api_errors import APIError

STALL_GRACE = 1.0
"""Seconds for which a client may keep the server waiting before others may take its room."""
FREE_BODY_BYTES = 2**16
"""Bytes of a body that every ticket includes: small requests find room beside large ones."""


class Ticket:
    """An admitted request: its reserved bytes, and since when its client has stalled."""

    def __init__(self, admission: Admission, drop: Callable[[], None]) -> None:
        self._admission, self._drop = admission, drop
        self.held = 0
        self.stalled_since: float | None = None

    def reserve(self, size: int, small: int = 0) -> None:
        """Reserve so many bytes more; the first `small` of them are free.

        Raises:
            APIError: there is no room for them now (429), or never (413).
        """
        self._admission.reserve(self, max(0, size - small))

    def hold(self, size: int) -> None:
        """Hold so many bytes more, which exist already; others make room, if any can."""
        self._admission.make_room(size)
        self._take(size)

    def release(self, size: int) -> None:
        """Release a part of the reserved bytes."""
        self._take(-min(size, self.held))

    def stall(self, waiting: bool) -> None:
        """Note that the client keeps the server waiting, or does so no longer."""
        self.stalled_since = time.monotonic() if waiting else None

    def close(self) -> None:
        """Give everything back; may be called again."""
        self.release(self.held)
        self._admission.tickets.discard(self)

    def drop(self) -> None:
        """Close the connection of the request, and give everything back."""
        self.close()
        self._drop()

    def _take(self, size: int) -> None:
        if self in self._admission.tickets:
            self.held += size
            self._admission.held += size


class Admission:
    """The tickets of one server.

    Args:
        max_requests: limit of requests in flight: received, waiting, worked on or answered.
        max_bytes: limit of the bytes of bodies, images and answers that they hold together.
        rejected: callback with the reason, "requests" or "memory", of each refusal.
    """

    def __init__(
        self, max_requests: int, max_bytes: int, rejected: Callable[[str], None] = lambda _: None
    ) -> None:
        self.max_requests, self.max_bytes, self.rejected = max_requests, max_bytes, rejected
        self.tickets: set[Ticket] = set()
        self.held = 0

    def admit(self, drop: Callable[[], None]) -> Ticket:
        """A ticket for a request whose connection `drop` closes.

        Raises:
            APIError: 429; too many are in flight.
        """
        while len(self.tickets) >= self.max_requests:
            if not self._drop_one():
                self.rejected("requests")
                raise _busy(f"{self.max_requests} requests are in flight already")
        ticket = Ticket(self, drop)
        self.tickets.add(ticket)
        return ticket

    def reserve(self, ticket: Ticket, size: int) -> None:
        """Hold so many bytes more for a ticket. Raises as `Ticket.reserve`."""
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
        """Drop stalled requests until so many bytes are free; whether they are."""
        while self.held + size > self.max_bytes:
            if not self._drop_one():
                return False
        return True

    def _drop_one(self) -> bool:
        late = time.monotonic() - STALL_GRACE
        stalled = [t for t in self.tickets if t.stalled_since is not None]
        longest = min(stalled, key=lambda t: t.stalled_since, default=None)
        if longest is None or longest.stalled_since > late:
            return False
        longest.drop()
        return True


def _busy(reason: str) -> APIError:
    return APIError(
        429, f"{reason}; try again in a second.", "server_busy", headers={"retry-after": "1"}
    )
