"""Dynamic batching: a bounded queue and one worker thread.

Work that arrives together and is of one kind is done in one call. The oldest work is always in the
next call, so that nothing waits forever behind work of another kind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class QueueFull(Exception):
    """The queue is full."""


class Closing(Exception):
    """The server takes no new work: it is shutting down."""


class Abandoned(Exception):
    """No client waits for the running batch any more."""


class Work(Protocol):
    """Work of one request."""

    size: int
    """Number of images or conversations."""

    @property
    def kind(self) -> Hashable:
        """Work of one kind can be done in one call."""


@dataclass(eq=False)
class Job:
    """One request's work, from the queue to its end. The thread reports on it by these calls."""

    work: Work
    done: Callable[[Any], None]
    """Given the result."""
    failed: Callable[[Exception], None]
    """Given what went wrong."""
    piece: Callable[[Any], None]
    """Given each part of a result, for requests that want parts as they are made."""
    arrived: float = field(default_factory=time.monotonic)
    begun: bool = False
    """Whether a part of its result was given away."""
    gone: bool = False
    """Whether nobody waits for it any more."""


class Call:
    """Several jobs that are done together; what does them asks here whether anybody still waits."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    @property
    def works(self) -> list[Any]:
        """Work of each job."""
        return [job.work for job in self.jobs]

    def proceed(self) -> None:
        """To be called often, between steps.

        Raises:
            Abandoned: nobody waits for any of the jobs.
        """
        if all(job.gone for job in self.jobs):
            raise Abandoned

    def piece(self, number: int, part: Any) -> None:
        """A part of the result of job `number` is there."""
        job = self.jobs[number]
        job.begun = True
        if not job.gone:
            job.piece(part)


class Observer:
    """Observer of a scheduler, for metrics; this one ignores all events."""

    def queued(self, length: int) -> None:
        """The queue has this many jobs now."""

    def worked(self, call: Call, seconds: float) -> None:
        """The work of a call was done."""


class Scheduler:
    """The queue and the thread that empties it.

    Args:
        run_batch: does the work of a call, and returns a result for each of its jobs. It is only
            ever called by the one thread. When it fails, jobs that were together are tried one by
            one, so that none fails for its neighbour's sake.
        max_batch: limit of images or conversations in a call. A single job may be larger.
        max_queue: limit of images or conversations that wait. A single job may be larger.
        max_wait: time in seconds to wait for more jobs to batch, if the thread is idle.
    """

    def __init__(
        self,
        run_batch: Callable[[Call], Sequence[Any]],
        max_batch: int = 16,
        max_queue: int = 64,
        max_wait: float = 0.01,
        observer: Observer | None = None,
    ) -> None:
        self.run_batch, self.observer = run_batch, observer or Observer()
        self.max_batch, self.max_queue, self.max_wait = max_batch, max_queue, max_wait
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def closing(self) -> bool:
        """Whether new work is refused."""
        return self._closing

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def queued(self) -> int:
        """Images and conversations in the queue."""
        return sum(job.work.size for job in self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being done."""
        with self._changed:
            return not self._queue and not self._running

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            QueueFull: the queue is full.
            Closing: `close` was called.
        """
        with self._changed:
            if self._closing:
                raise Closing
            if self._queue and self.queued + job.work.size > self.max_queue:
                raise QueueFull
            self._queue.append(job)
            self.observer.queued(len(self._queue))
            self._changed.notify_all()

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this job any more; a call ends when that is so of all its jobs."""
        with self._changed:
            if job.gone:
                return
            job.gone = True
            if job in self._queue:
                self._queue.remove(job)
                self.observer.queued(len(self._queue))
            self._changed.notify_all()

    def close(self) -> None:
        """Take no new work; what waits and what runs is finished."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, seconds: float | None = None) -> None:
        """Wait until the thread has ended, after `close`."""
        self._thread.join(seconds)

    # The thread ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._do(jobs)
            finally:
                with self._changed:
                    self._running = []
                del jobs  # results and images are not kept until the next work comes

    def _next(self) -> list[Job]:
        """The oldest job and what can be done with it; waits for it. Nothing: the end."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                jobs = self._together()
                full = sum(job.work.size for job in jobs) >= self.max_batch
                patience = jobs[0].arrived + self.max_wait - time.monotonic()
                if full or self._closing or patience <= 0:
                    break
                self._changed.wait(patience)
            self._queue = [job for job in self._queue if job not in jobs]
            self._running = jobs
            self.observer.queued(len(self._queue))
            return jobs

    def _together(self) -> list[Job]:
        """The oldest job and, in the order of their coming, others of its kind that fit."""
        jobs, size = self._queue[:1], self._queue[0].work.size
        for job in self._queue[1:]:
            if job.work.kind == jobs[0].work.kind and size + job.work.size <= self.max_batch:
                jobs.append(job)
                size += job.work.size
        return jobs

    def _do(self, jobs: Sequence[Job]) -> None:
        call, started = Call(jobs), time.monotonic()
        try:
            results = self.run_batch(call)
        except Abandoned:
            return
        except Exception as error:
            again = [job for job in jobs if not job.begun] if len(jobs) > 1 else []
            for job in jobs:
                if job in again:
                    self._do([job])
                else:
                    job.failed(error)
            return
        self.observer.worked(call, time.monotonic() - started)
        for job, result in zip(jobs, results, strict=True):
            job.done(result)
