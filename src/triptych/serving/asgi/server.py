"""Server process: port, signals, shutdown."""

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
from triptych.serving.asgi.uvicorn_protocol import TimedProtocol
from triptych.utils.errors import UserError  # torch is imported after the port is open

BACKLOG = 128
"""Connections that the system queues. They are accepted together, so that many more than the limit
may be open for a moment."""
REASONS = {
    errno.EADDRINUSE: "another program uses it; choose another --port, or 0 for any free one",
    errno.EACCES: "this user has no permission; choose a --port of 1024 or above",
    errno.EADDRNOTAVAIL: "it is not an address of this machine; use --host 127.0.0.1 or 0.0.0.0",
}


def open_port(host: str, port: int) -> socket.socket:
    """Bind a socket before the model is loaded; connections are refused until `run`.

    Raises:
        UserError: the port is in use, or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is not a port; choose one from 1 to 65535, or 0 for any free one.")
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
        raise _port_error(host, port, error) from error
    return bound


def _port_error(host: str, port: int, error: OSError) -> UserError:
    reason = REASONS.get(error.errno, os.strerror(error.errno or 0))
    return UserError(f"port {port} of {host} cannot be opened: {reason}.")


class BoundedServer(uvicorn.Server):
    """Server of uvicorn with limits of its connections and of their times.

    Args:
        app: ASGI application.
        max_connections: limit of open connections; by default `default_max_connections`.
        options: options of uvicorn.Config.
    """

    def __init__(self, app: ASGIApp, max_connections: int | None = None, **options: Any) -> None:
        connections = Connections(max_connections or default_max_connections())
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(TimedProtocol, connections=connections),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,  # left to a proxy; metrics count requests
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
    """Server of a model with graceful shutdown.

    At the first SIGTERM or SIGINT, new requests get 503, as /health does, running and queued jobs
    are finished, and `run` returns. At the second one the process exits at once.
    """

    def __init__(self, app: FastAPI, max_connections: int | None = None) -> None:
        context = app.state.context
        super().__init__(
            app,
            max_connections,
            # a client that does not read its response must not delay the shutdown
            timeout_graceful_shutdown=max(1, round(context.dispatcher.timeout)),
        )
        self.scheduler = context.scheduler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.scheduler.closing:
            os._exit(128 + sig)
        # in the event loop, since this thread may hold the lock of the scheduler right now
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self.scheduler.close()
        print("triptych: finishing all requests; a second signal exits at once.", file=sys.stderr)
        self._shutdown = asyncio.create_task(self._exit_when_idle())

    async def _exit_when_idle(self) -> None:
        while not self.scheduler.idle:
            await asyncio.sleep(0.05)
        self.should_exit = True


def run(app: FastAPI, bound: socket.socket, max_connections: int | None = None) -> None:
    """Serve until a signal arrives.

    Raises:
        UserError: another program took the port meanwhile.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        raise _port_error(host, port, error) from error
    address = f"[{host}]" if ":" in host else host
    print(f"serving {app.state.context.name} on http://{address}:{port}/v1", flush=True)
    Server(app, max_connections).run(sockets=[bound])
