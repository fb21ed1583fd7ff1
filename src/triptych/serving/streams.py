"""Answers that come in pieces, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from triptych.serving.desk import ClientLeft
from triptych.serving.problems import Problem


async def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """An answer of these events. Its first is waited for, so that what fails before fails with a
    status; what fails later is an event, which OpenAI's clients raise.

    Raises:
        Problem: of the first event.
    """
    first = await anext(events)
    return StreamingResponse(
        _rest(first, events),
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
    except ClientLeft:
        return
    finally:
        await events.aclose()
