"""Submission of jobs, and their results, with timeout and client disconnects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.http.batching import Closing, Job, QueuedJob, QueueFull, Scheduler
from triptych.serving.http.metrics import Metrics
from triptych.utils.errors import NotFiniteError, UserError

log = logging.getLogger("triptych.serving")
SHUTTING_DOWN = "the server is shutting down; send this to another one, or later."


class Dispatcher:
    """Submits jobs of requests to the scheduler and awaits their results.

    Args:
        timeout: limit of the seconds from a request to the end of its response.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, timeout: float) -> None:
        self.scheduler, self.metrics, self.timeout = scheduler, metrics, timeout

    async def result(self, request: Request, job: Job) -> Any:
        """Await the result of a job.

        Raises:
            APIError: the queue is full (429), the server is shutting down (503), the deadline has
                passed (504), or the pipeline refused the job (400).
        """
        async with aclosing(self.events(request, job)) as events:
            async for kind, value in events:
                if kind == "result":
                    return value

    async def events(self, request: Request, job: Job) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("partial", result) for partial results, then ("result", result).

        Raises as `result`.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def put(kind: str):
            return lambda value: loop.call_soon_threadsafe(events.put_nowait, (kind, value))

        queued = QueuedJob(
            job, on_result=put("result"), on_error=put("error"), on_partial_result=put("partial")
        )
        self._submit(queued)
        deadline, kind = request.state.deadline, ""
        try:
            while kind != "result":
                async with asyncio.timeout_at(deadline):
                    kind, value = await events.get()
                if kind == "error":
                    raise value
                yield kind, value
        except TimeoutError as error:
            raise self.timeout_error() from error
        except UserError as error:
            raise _api_error(error) from error
        finally:
            self.scheduler.withdraw(queued)

    def timeout_error(self) -> APIError:
        """Count a timeout, and create its 504 error."""
        self.metrics.timeouts.inc()
        return APIError(
            504,
            f"the response was not ready within {self.timeout:g} seconds; request less, or when "
            "the server is less busy.",
            "timeout",
            headers={"x-should-retry": "false"},  # a retry would take as long
        )

    def _submit(self, queued: QueuedJob) -> None:
        try:
            self.scheduler.submit(queued)
        except QueueFull as error:
            self.metrics.rejected.labels("queue_full").inc()
            raise APIError(
                429,
                f"{self.scheduler.waiting} requests wait already; try again in a second.",
                "queue_full",
                headers={"retry-after": "1"},
            ) from error
        except Closing as error:
            self.metrics.rejected.labels("shutting_down").inc()
            raise APIError(
                503, SHUTTING_DOWN, "shutting_down", headers={"retry-after": "5"}
            ) from error


def _api_error(error: UserError) -> APIError:
    """Convert an error of the pipeline; the client does not see messages about this machine."""
    if isinstance(error.__cause__, MemoryError | RuntimeError):
        log.error("out of memory: %s", error)
        return APIError(
            503,
            "the server has too little memory for this request; request fewer images at once.",
            "out_of_memory",
            headers={"x-should-retry": "false"},
        )
    if isinstance(error, NotFiniteError):
        log.error("%s", error)
        return APIError(
            500,
            "the model computed NaN or infinite numbers, so there is no result; tell whoever runs "
            "this server, whose log names the stage.",
            "not_finite",
            headers={"x-should-retry": "false"},
        )
    return APIError(400, str(error), "invalid_value")
