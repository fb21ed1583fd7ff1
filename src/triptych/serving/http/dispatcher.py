"""Between a request and the queue: waits for the result, for its time to end, for its client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.http.batching import Closing, Job, QueueFull, Scheduler, Work
from triptych.serving.http.metrics import Metrics
from triptych.utils.errors import NotFiniteError, UserError

log = logging.getLogger("triptych.serving")
SHUTTING_DOWN = "the server is shutting down; send this to another one, or later."


class Dispatcher:
    """Takes requests' work to the scheduler.

    Args:
        timeout: limit in seconds from a request to the end of its answer.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, timeout: float) -> None:
        self.scheduler, self.metrics, self.timeout = scheduler, metrics, timeout

    async def result(self, request: Request, work: Work) -> Any:
        """Await the result of `run_batch` for the work.

        Raises:
            APIError: the queue is full (429), the server shuts down (503), time is over (504), or
                the pipeline refused the work (400).
        """
        async with aclosing(self.events(request, work)) as events:
            async for kind, value in events:
                if kind == "done":
                    return value

    async def events(self, request: Request, work: Work) -> AsyncIterator[tuple[str, Any]]:
        """("piece", part) as parts are made, then ("done", result). Raises as `result`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def tell(kind: str):
            return lambda value: loop.call_soon_threadsafe(events.put_nowait, (kind, value))

        job = Job(work, done=tell("done"), failed=tell("failed"), piece=tell("piece"))
        self._submit(job)
        deadline, kind = request.state.deadline, ""
        try:
            while kind != "done":
                async with asyncio.timeout_at(deadline):
                    kind, value = await events.get()
                if kind == "failed":
                    raise value
                yield kind, value
        except TimeoutError as error:
            raise self.too_late() from error
        except UserError as error:
            raise _refused(error) from error
        finally:
            self.scheduler.withdraw(job)

    def too_late(self) -> APIError:
        """504, counted: the deadline of a request has passed."""
        self.metrics.timeouts.inc()
        return APIError(
            504,
            f"the answer was not ready within {self.timeout:g} seconds; ask for less, or when "
            "fewer others do.",
            "timeout",
            headers={"x-should-retry": "false"},  # the same would take as long again
        )

    def _submit(self, job: Job) -> None:
        try:
            self.scheduler.submit(job)
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


def _refused(error: UserError) -> APIError:
    """A sentence of the pipeline is for the client, unless it is about this machine."""
    if isinstance(error.__cause__, MemoryError | RuntimeError):
        log.error("memory does not suffice: %s", error)
        return APIError(
            503,
            "the server's memory does not suffice for this; ask for fewer images at once.",
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
