"""Limit of the connections of a server, below the limit of open files."""

from __future__ import annotations

import resource
from typing import Protocol

from triptych.serving.asgi.admission import Ticket

MAX_CONNECTIONS = 512
"""Default limit of connections, if the process may open twice as many files."""


class Connection(Protocol):
    """Interface of an open connection."""

    ticket: Ticket | None
    """Ticket of the admitted request on it."""

    def abort(self) -> None:
        """Close the connection at once, discarding unsent data."""


def default_max_connections() -> int:
    """Return half of the limit of open files of this process, at most MAX_CONNECTIONS."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Connections:
    """All open connections, the oldest first.

    At the limit, a new connection replaces the one that has waited longest for the headers of a
    request (partly sent or idle), else the oldest that has no admitted request or a stalled one. If
    there is neither, the new one is closed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._all: dict[Connection, None] = {}
        self._waiting: dict[Connection, None] = {}

    def add(self, connection: Connection) -> None:
        """Add a new connection; close another one or the new one at the limit."""
        if len(self._all) >= self.limit:
            stalled = (each for each in self._all if _is_droppable(each))
            if (victim := next(iter(self._waiting), None) or next(stalled, None)) is None:
                connection.abort()
                return
            self.remove(victim)
            victim.abort()
        self._all[connection] = self._waiting[connection] = None

    def wait(self, connection: Connection) -> None:
        """Mark a connection as waiting for the headers of a request."""
        if connection in self._all:
            self._waiting.setdefault(connection)

    def work(self, connection: Connection) -> None:
        """Mark a connection as processing a request."""
        self._waiting.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._all.pop(connection, None)
        self._waiting.pop(connection, None)


def _is_droppable(connection: Connection) -> bool:
    ticket = connection.ticket
    return ticket is None or ticket.stalled_since is not None
