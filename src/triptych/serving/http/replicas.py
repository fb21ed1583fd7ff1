"""Replicas of the server on one machine, behind the proxy of Ray Serve.

Each replica is a process with a model and the whole ASGI application of `app`. Ray starts and
restarts them, gives each a GPU, and hands a request to the less busy of two.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych.serving.asgi.admission import Ticket
from triptych.serving.http.metrics import SHARED_FOLDER
from triptych.utils.errors import UserError

OBJECT_STORE_BYTES = 80 * 2**20
"""Memory that Ray shares among processes, its minimum: nothing here uses it."""
HEALTH_PERIOD = 1.0
"""Seconds between two looks at a replica, and at most until its death is noticed."""


class ProxiedConnection:
    """Connection of a request that came through the proxy, see `RequestMiddleware`.

    The proxy reads a body before it hands the request on, and reads responses as they are written,
    so no ticket ever stalls and is dropped.
    """

    ticket: Ticket | None = None

    def abort(self) -> None:
        pass

    async def flushed(self) -> None:
        pass


class ProxiedRequests:
    """ASGI middleware that gives each request its `ProxiedConnection`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["connection"] = ProxiedConnection()
        await self.app(scope, receive, send)


def serve_replicas(
    build: Callable[[], FastAPI],
    bound: socket.socket,
    *,
    name: str,
    replicas: int,
    gpus: int,
    max_requests: int,
    timeout: float,
) -> None:
    """Serve replicas of an application until a signal arrives.

    Args:
        build: function that creates the application, called in each replica; pickled.
        bound: socket of `open_port`, whose address is left to the proxy.
        name: name of the model for clients.
        replicas: number of replicas.
        gpus: number of GPUs of each replica, 0 or 1.
        max_requests: number of requests that a replica admits; the proxy hands it twice as many,
            which the replica refuses itself, and queues as many again.
        timeout: limit of the seconds of a request, for which a replica waits when it ends.

    Raises:
        UserError: Ray or a replica did not start.
    """
    host, port = bound.getsockname()[:2]
    with _ray(gpus * replicas) as (serve, metrics):

        def application() -> FastAPI:
            app = build()
            app.add_middleware(ProxiedRequests)
            return app

        deployment = serve.deployment(
            name="replica",
            num_replicas=replicas,
            ray_actor_options={
                "num_cpus": 0,
                "num_gpus": gpus,
                "runtime_env": {"env_vars": {SHARED_FOLDER: str(metrics)}},
            },
            max_ongoing_requests=2 * max_requests,
            max_queued_requests=2 * max_requests,
            max_constructor_retry_count=1,
            health_check_period_s=HEALTH_PERIOD,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=timeout,
        )(serve.ingress(application)())
        bound.close()
        quiet = serve.schema.LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        try:
            serve.run(deployment.bind(), name=name, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise UserError(
                "a replica did not start; try the same command without --replicas, which shows why."
            ) from error
        address = f"[{host}]" if ":" in host else host
        with _signals() as wait:
            print(f"serving {name} on http://{address}:{port}/v1", flush=True)
            wait()
            serve.delete(name)  # waits for the requests in flight, for which the proxy stays


@contextmanager
def _ray(gpus: int) -> Iterator[tuple[ModuleType, Path]]:
    """Ray on this machine alone, without telemetry, dashboard or files that stay.

    Yields Ray Serve, and a folder for the metrics of the replicas.
    """
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray listens on all addresses; who cannot send this token is refused
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    import ray  # reads the environment
    from ray import serve
    from ray.serve import schema  # noqa: F401

    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.ERROR)
    # the paths of Ray's sockets must be short, and $TMPDIR may be long
    with tempfile.TemporaryDirectory(prefix="triptych-", dir="/tmp") as folder:
        (metrics := Path(folder, "metrics")).mkdir()
        try:
            ray.init(
                address="local",
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        except Exception as error:  # its class, too, if processes do not start within 30 s
            raise UserError(f"Ray did not start: {str(error).split('. ')[0]}.") from error
        try:
            yield serve, metrics
        finally:
            ray.shutdown()


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Yield a function that waits for SIGTERM or SIGINT; at a second one the process exits."""
    reading, writing = os.pipe()

    def handle(number: int, frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        os.write(2, b"triptych: finishing all requests; a second signal exits at once.\n")
        os.write(writing, b"\n")

    before = {each: signal.signal(each, handle) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: os.read(reading, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
