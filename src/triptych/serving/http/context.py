"""Shared state of the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter
from PIL import Image
from starlette.requests import Request

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.http.batching import Scheduler
from triptych.serving.http.dispatcher import Dispatcher
from triptych.serving.http.metrics import Metrics
from triptych.serving.images.image_decoder import ImageDecoder
from triptych.serving.images.sizes import ImageSizes

STATUSES = {
    400: "The request is invalid; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The request is from a page of another origin; see `--allow-host`.",
    404: "The model or address does not exist.",
    408: "The body arrived too slowly.",
    413: "The body is too large, or needs more memory than the server has for all requests.",
    415: "The body has another content type than this address accepts.",
    421: "`Host` names another server; see `--allow-host`.",
    429: "The server is busy; `Retry-After` states when to retry.",
    500: "The server failed; see its log.",
    503: "The server is shutting down, or has too little memory.",
    504: "The response was not ready in time.",
}


@dataclass
class Context:
    """The served model, and the components that process requests."""

    name: str
    """Name of the model."""
    sizes: ImageSizes
    dispatcher: Dispatcher
    scheduler: Scheduler
    metrics: Metrics
    decoder: ImageDecoder = field(default_factory=ImageDecoder)
    encoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Limit of the threads that encode images, each of which needs several times their memory."""
    large_encoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    """The same limit for large images, which must not delay small ones."""
    started: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Refuse the names of other models.

        Raises:
            APIError: 404.
        """
        if name not in (None, self.name):
            raise APIError(
                404, f"this server has no such model; it has {self.name}.", "model_not_found",
                "model",
            )  # fmt: skip

    async def read_images(
        self, request: Request, files: Sequence[bytes], size: int | None, params: Sequence[str]
    ) -> list[Image.Image]:
        """Decode the images of a request before its deadline.

        Raises:
            APIError: an error of `ImageDecoder.read`; 504.
        """
        try:
            async with asyncio.timeout_at(request.state.deadline):
                return await self.decoder.read(files, size, params, request.state.ticket)
        except TimeoutError as error:
            raise self.dispatcher.timeout_error() from error

    def documented(self, schema: str, errors: tuple[int, ...] = tuple(STATUSES)) -> dict[str, Any]:
        """Return the OpenAPI description of a route by the schema of its response."""
        return {
            "response_model": None,
            "responses": {200: {"content": _json(schema), "description": "Success."}}
            | {
                status: {"content": _json("ErrorBody"), "description": STATUSES[status]}
                for status in errors
            },
        }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
