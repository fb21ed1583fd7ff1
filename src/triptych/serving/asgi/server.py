"""The server as a process: its port, its signals, its end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from triptych.serving.asgi.connections import Connections, default_max_connections
from triptych.serving.asgi.log_limits import limit_logs, on_loop_error
from triptych.serving.asgi.uvicorn_protocol import Protocol
from triptych.utils.errors import UserError  # torch is imported when the port is open

BACKLOG = 128
"""Connections that the system keeps until they are accepted, and that are accepted in one go: so
many more than the bound may be open for a moment."""
REASONS = {
    errno.EADDRINUSE: "another program has it; choose another --port, or 0 for any free one",
    errno.EACCES: "this user may not; choose a --port of 1024 or above",
    errno.EADDRNOTAVAIL: "it is no address of this machine; use --host 127.0.0.1 or 0.0.0.0",
}


def open_port(host: str, port: int) -> socket.socket:
    """A socket bound to the port, before long work starts; connections are refused until `run`.

    Raises:
        UserError: the port is taken, or may not be taken.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is no port; choose one from 1 to 65535, or 0 for any free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host} is not the name of an address; check it.") from error
    except OSError as error:
        raise _not_open(host, port, error) from error
    return bound


def _not_open(host: str, port: int, error: OSError) -> UserError:
    reason = REASONS.get(error.errno, os.strerror(error.errno or 0))
    return UserError(f"port {port} of {host} cannot be opened: {reason}.")


class BoundedServer(uvicorn.Server):
    """uvicorn's server with bounds on its connections and on the time that each may take.

    Args:
        app: an ASGI application.
        max_connections: bound on open connections; by default as the process's files allow.
        options: options of uvicorn.Config.
    """

    def __init__(self, app: ASGIApp, max_connections: int | None = None, **options: Any) -> None:
        connections = Connections(max_connections or default_max_connections())
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Protocol, connections=connections),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,  # for a proxy to write; metrics count requests
                server_header=False,
                backlog=BACKLOG,
                **options,
            )
        )
        limit_logs()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(on_loop_error)
        await super().startup(sockets)


class Server(BoundedServer):
    """A server of a model, with our way to end.

    At the first SIGTERM or SIGINT no new work is taken (503, as of /health), what runs and what
    waits is finished, and `run` returns. At the second the process ends at once.
    """

    def __init__(self, app: FastAPI, max_connections: int | None = None) -> None:
        context = app.state.context
        super().__init__(
            app,
            max_connections,
            # A client that does not read its answer does not keep the server from its end.
            timeout_graceful_shutdown=max(1, round(context.dispatcher.timeout)),
        )
        self.scheduler = context.scheduler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.scheduler.closing:
            os._exit(128 + sig)
        # From the event loop: the signal may have come while this very thread held the lock.
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self.scheduler.close()
        print("triptych: finishing what runs; a second signal ends at once.", file=sys.stderr)
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        while not self.scheduler.idle:
            await asyncio.sleep(0.05)
        self.should_exit = True


def run(app: FastAPI, bound: socket.socket, max_connections: int | None = None) -> None:
    """Serve until a signal.

    Raises:
        UserError: another program was faster in taking the port.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        raise _not_open(host, port, error) from error
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {app.state.context.name} on http://{shown}:{port}/v1", flush=True)
    Server(app, max_connections).run(sockets=[bound])
