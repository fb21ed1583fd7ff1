"""Streamed responses as server-sent events.

FastAPI frames the events. Its EventSourceResponse and that of sse-starlette are not used: they send
pings outside of the limits of memory and unread responses, and the latter cancels open streams at
the shutdown of the server, which lets them finish here.
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
    """Encode an event with JSON, or with a text as it is."""
    text = data if isinstance(data, str) else json.dumps(data)
    return format_sse_event(data_str=text, event=name)


async def event_stream(request: Request, events: AsyncIterator[bytes]) -> StreamingResponse:
    """Stream events as a response. The first one is awaited, so that an early failure has a status;
    a later failure becomes an event, which OpenAI's clients raise.

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
    except APIError as error:
        yield sse_event(error.body, "error")
    finally:
        await events.aclose()


async def flush_each(
    request: Request, chunks: AsyncIterator[bytes] | AsyncIterator[str]
) -> AsyncIterator[bytes | str]:
    """Yield chunks of a response, each after the one before was sent."""
    ticket, connection = request.state.ticket, request.state.connection
    async with aclosing(chunks):
        async for chunk in chunks:
            size = 2 * len(chunk)  # with its copy in the buffer of the connection
            ticket.hold(size)
            yield chunk
            await connection.flushed()
            ticket.release(size)
