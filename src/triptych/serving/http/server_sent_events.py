"""Answers that come in pieces, as server-sent events.

FastAPI frames the events. Its EventSourceResponse and that of sse-starlette are not used: they send
pings beside the answer, which the limits of memory and of unread answers would not see, and the
latter cancels open streams when the server is stopped, where this one lets them end.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from triptych.serving.asgi.api_errors import APIError


def sse_event(data: dict[str, Any] | str, name: str | None = None) -> bytes:
    """One event of JSON, or of a text as it is."""
    text = data if isinstance(data, str) else json.dumps(data)
    return format_sse_event(data_str=text, event=name)


async def event_stream(request: Request, events: AsyncIterator[bytes]) -> StreamingResponse:
    """Stream events as a response. The first is awaited, so that an early failure has a
    status; a later failure is an event, which OpenAI's clients raise.

    Raises:
        APIError: the first event is an error.
    """
    first = await anext(events)
    return StreamingResponse(
        flush_each(request, _rest(first, events)),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _rest(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for each in events:
            yield each
    except APIError as problem:
        yield sse_event(problem.body, "error")
    finally:
        await events.aclose()


async def flush_each(
    request: Request, parts: AsyncIterator[bytes] | AsyncIterator[str]
) -> AsyncIterator[bytes | str]:
    """Each part of an answer is made when the one before it has been sent."""
    ticket, connection = request.state.ticket, request.state.connection
    async with aclosing(parts):
        async for part in parts:
            size = 2 * len(part)  # and its copy in the connection's buffer
            ticket.hold(size)
            yield part
            await connection.flushed()
            ticket.release(size)
