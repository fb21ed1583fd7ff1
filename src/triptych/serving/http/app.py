"""ASGI application: routes, errors, worker thread of the pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from triptych import __version__
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.asgi.admission import Admission
from triptych.serving.asgi.api_errors import APIError, status_error, validation_error
from triptych.serving.asgi.host_check import AllowedHosts
from triptych.serving.asgi.middleware import RequestMiddleware
from triptych.serving.http.batching import Scheduler
from triptych.serving.http.chat_routes import chat_routes
from triptych.serving.http.context import Context
from triptych.serving.http.dispatcher import Dispatcher
from triptych.serving.http.images_routes import image_routes
from triptych.serving.http.jobs import run_batch
from triptych.serving.http.metrics import Metrics
from triptych.serving.http.openapi import describe
from triptych.serving.images.sizes import ImageSizes


@dataclass
class Limits:
    """Limits of a server."""

    max_batch: int = 16
    """Maximum number of images or conversations in a batch."""
    max_queue: int = 64
    """Maximum number of queued images and conversations; further requests are refused."""
    max_wait_ms: float = 10
    """Milliseconds to wait for more requests to batch when the model is idle."""
    timeout: float = 120
    """Maximum number of seconds from a request to the end of its response."""
    max_body_mb: float = 20
    """Maximum size of a request's body in megabytes."""
    max_memory_mb: float = 384
    """Maximum memory in megabytes of bodies, images and responses of all requests together."""


def create_app(
    pipeline: UnifiedPipeline,
    name: str,
    sizes: ImageSizes,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: AllowedHosts | None = None,
) -> FastAPI:
    """Create the application. Its `state.context.scheduler` runs from startup to shutdown.

    Args:
        pipeline: pipeline, which runs in a thread of its own.
        name: name of the model for clients.
        sizes: image sizes of the model.
        limits: limits of the server.
        api_key: key that clients must send; None allows every client.
        hosts: names by which clients may address the server; by default the loopback names.
    """
    limits = limits or Limits()
    metrics = Metrics()
    scheduler = Scheduler(
        partial(run_batch, pipeline, limits.max_batch),
        max_batch=limits.max_batch,
        max_queue=limits.max_queue,
        max_wait=limits.max_wait_ms / 1000,
        observer=metrics,
    )
    admission = Admission(
        limits.max_queue + limits.max_batch,
        int(limits.max_memory_mb * 2**20),
        lambda reason: metrics.rejected.labels(reason).inc(),
    )
    dispatcher = Dispatcher(scheduler, metrics, limits.timeout)
    context = Context(name, sizes, dispatcher, scheduler, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        scheduler.close()
        await context.decoder.close()

    app = FastAPI(
        title="triptych",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context, app.state.admission = context, admission
    app.add_middleware(
        RequestMiddleware,
        answered=metrics.answered,
        admission=admission,
        hosts=hosts or AllowedHosts(),
        api_key=api_key,
        max_body=int(limits.max_body_mb * 2**20),
        timeout=limits.timeout,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    app.include_router(image_routes(context))
    app.include_router(chat_routes(context))
    _add_small_routes(app, context)
    app.openapi = partial(describe, app, api_key is not None)
    return app


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Respond to a body that is invalid or not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and error.errors()[0]["loc"] == ("body",):
        message = "send the request as application/json."
        return APIError(415, message, "unsupported_media_type").response()
    return validation_error(error.errors()).response()


async def _unknown(request: Request, error: HTTPException) -> Response:
    return status_error(error.status_code, error.headers).response()


def _add_small_routes(app: FastAPI, context: Context) -> None:
    model = {
        "id": context.name,
        "object": "model",
        "created": context.started,
        "owned_by": "triptych",
    }

    async def models() -> Response:
        """List the models of this server: one."""
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(name: str) -> Response:
        """Get the model of this name."""
        context.check_model(name)
        return JSONResponse(model)

    async def health() -> Response:
        """Return 200 while requests are accepted, 503 from the first signal to stop."""
        draining = context.scheduler.closing
        body = {
            "status": "draining" if draining else "ready",
            "queue": context.scheduler.waiting,
        }
        return JSONResponse(body, 503 if draining else 200)

    async def metrics(request: Request) -> Response:
        """Return the metrics in the Prometheus text format."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(context.metrics.exposed()), headers={"content-type": content_type})

    common = (400, 401, 403, 404, 408, 413, 415, 421, 429, 500)
    for path, endpoint, documented in (
        ("/v1/models", models, context.documented("ModelList", common)),
        ("/v1/models/{name:path}", one_model, context.documented("Model", common)),
        ("/health", health, context.documented("Health", (403, 408, 413, 415, 421, 429, 500))),
        ("/metrics", metrics, {"response_class": Response}),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], **documented)
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
