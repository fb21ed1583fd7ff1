"""A bound on the connections of a server, below what the process may open."""

from __future__ import annotations

import resource
from typing import Protocol

from triptych.serving.asgi.admission import Ticket

MAX_CONNECTIONS = 512
"""Connections by default, where the process may open twice as many files."""


class Connection(Protocol):
    """Interface of an open connection."""

    ticket: Ticket | None
    """Ticket of the admitted request on it."""

    def abort(self) -> None:
        """Close it at once, whatever was not sent."""


def default_max_connections() -> int:
    """The default bound: half of the files that this process may open, at most MAX_CONNECTIONS."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Connections:
    """All open connections, the oldest first.

    At the bound, a new connection replaces the one that has waited longest for the headers of a
    request (half-sent or idle), else the oldest without an admitted request or whose client keeps
    the server waiting. If there is neither, the new one is closed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._all: dict[Connection, None] = {}
        self._waiting: dict[Connection, None] = {}

    def add(self, connection: Connection) -> None:
        """A connection was made; another one may be closed for it, or it is closed itself."""
        if len(self._all) >= self.most:
            stalled = (each for each in self._all if _may_go(each))
            if (victim := next(iter(self._waiting), None) or next(stalled, None)) is None:
                connection.abort()
                return
            self.remove(victim)
            victim.abort()
        self._all[connection] = self._waiting[connection] = None

    def wait(self, connection: Connection) -> None:
        """It waits for the headers of a request from now on."""
        if connection in self._all:
            self._waiting.setdefault(connection)

    def work(self, connection: Connection) -> None:
        """A request is being answered on it."""
        self._waiting.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """It is closed."""
        self._all.pop(connection, None)
        self._waiting.pop(connection, None)


def _may_go(connection: Connection) -> bool:
    ticket = connection.ticket
    return ticket is None or ticket.stalled_since is not None
