"""Answers that come in pieces, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import StreamingResponse

from triptych.serving.asgi.api_errors import Problem


async def event_stream(request: Request, events: AsyncIterator[str]) -> StreamingResponse:
    """An answer of these events. Its first is waited for, so that what fails before fails with a
    status; what fails later is an event, which OpenAI's clients raise.

    Raises:
        Problem: of the first event.
    """
    first = await anext(events)
    return StreamingResponse(
        one_by_one(request, _rest(first, events)),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _rest(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    try:
        async for event in events:
            yield event
    except Problem as problem:
        yield f"event: error\ndata: {json.dumps(problem.body)}\n\n"
    finally:
        await events.aclose()


async def one_by_one(request: Request, parts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Each part of an answer is made when the one before it has been sent."""
    ticket, connection = request.state.ticket, request.state.connection
    async with aclosing(parts):
        async for part in parts:
            size = 2 * len(part)  # and its copy in the connection's buffer
            ticket.hold(size)
            yield part
            await connection.flushed()
            ticket.release(size)
