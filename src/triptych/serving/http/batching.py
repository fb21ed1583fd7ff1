"""Dynamic batching: a bounded queue and one worker thread.

Queued jobs of the same batch key run in one batch. The oldest job is always in the next batch, so
that no job starves behind jobs of another key.
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
    """The server is shutting down and accepts no jobs."""


class Abandoned(Exception):
    """All clients of the running batch have left."""


class Job(Protocol):
    """Job of one request."""

    size: int
    """Number of images or conversations."""

    @property
    def batch_key(self) -> Hashable:
        """Key that is equal for jobs that can run in one batch."""


@dataclass(eq=False)
class QueuedJob:
    """A job from the queue to its end, with the callbacks by which the thread reports on it."""

    job: Job
    on_result: Callable[[Any], None]
    on_error: Callable[[Exception], None]
    on_partial_result: Callable[[Any], None]
    """Callback for partial results, of jobs that request them."""
    arrived: float = field(default_factory=time.monotonic)
    has_partial_result: bool = False
    """Whether a partial result was reported."""
    abandoned: bool = False
    """Whether the client has left."""


class JobBatch:
    """Jobs that run together."""

    def __init__(self, queued: Sequence[QueuedJob]) -> None:
        self.queued = list(queued)

    @property
    def jobs(self) -> list[Any]:
        """Jobs in the order of their results."""
        return [queued.job for queued in self.queued]

    def check_abandoned(self) -> None:
        """Stop the batch if no client waits for it; to be called between steps.

        Raises:
            Abandoned: all clients have left.
        """
        if all(queued.abandoned for queued in self.queued):
            raise Abandoned

    def report_partial(self, number: int, result: Any) -> None:
        """Report a partial result of job `number`."""
        queued = self.queued[number]
        queued.has_partial_result = True
        if not queued.abandoned:
            queued.on_partial_result(result)


class Observer:
    """Observer of a scheduler, for metrics; this one ignores all events."""

    def queue_changed(self, length: int) -> None:
        """Called with the new number of queued jobs."""

    def batch_done(self, batch: JobBatch, seconds: float) -> None:
        """Called after a batch."""


class Scheduler:
    """A queue of jobs and the worker thread that runs them.

    Args:
        run_batch: function that returns a result for each job of a batch, called by the worker
            thread only. If it fails, the jobs are retried one by one, so that none fails because
            of another.
        max_batch: limit of the images or conversations in a batch; a single job may exceed it.
        max_queue: limit of the queued images or conversations; a single job may exceed it.
        max_wait: seconds to wait for more jobs to batch, if the thread is idle.
        observer: observer of queue lengths and batches.
    """

    def __init__(
        self,
        run_batch: Callable[[JobBatch], Sequence[Any]],
        *,
        max_batch: int = 16,
        max_queue: int = 64,
        max_wait: float = 0.01,
        observer: Observer | None = None,
    ) -> None:
        self.run_batch, self.observer = run_batch, observer or Observer()
        self.max_batch, self.max_queue, self.max_wait = max_batch, max_queue, max_wait
        self._queue: list[QueuedJob] = []
        self._running: list[QueuedJob] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def closing(self) -> bool:
        """Whether new jobs are refused."""
        return self._closing

    @property
    def waiting(self) -> int:
        """Number of queued jobs."""
        return len(self._queue)

    @property
    def queued_size(self) -> int:
        """Number of images and conversations in the queue."""
        return sum(queued.job.size for queued in self._queue)

    @property
    def idle(self) -> bool:
        """Whether no job is queued or running."""
        with self._changed:
            return not self._queue and not self._running

    def submit(self, queued: QueuedJob) -> None:
        """Append a job to the queue.

        Raises:
            QueueFull: the queue is full.
            Closing: `close` was called.
        """
        with self._changed:
            if self._closing:
                raise Closing
            if self._queue and self.queued_size + queued.job.size > self.max_queue:
                raise QueueFull
            self._queue.append(queued)
            self.observer.queue_changed(len(self._queue))
            self._changed.notify_all()

    def withdraw(self, queued: QueuedJob) -> None:
        """Mark a job as abandoned; a running batch stops when all its jobs are."""
        with self._changed:
            if queued.abandoned:
                return
            queued.abandoned = True
            if queued in self._queue:
                self._queue.remove(queued)
                self.observer.queue_changed(len(self._queue))
            self._changed.notify_all()

    def close(self) -> None:
        """Refuse new jobs; queued and running ones are finished."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, seconds: float | None = None) -> None:
        """Wait until the thread has ended, after `close`."""
        self._thread.join(seconds)

    # Worker thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while jobs := self._next_batch():
            try:
                self._run_jobs(jobs)
            finally:
                with self._changed:
                    self._running = []
                del jobs  # frees results and images before the next batch arrives

    def _next_batch(self) -> list[QueuedJob]:
        """Wait for the next batch and take it off the queue; return [] after `close`."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                jobs = self._select()
                full = sum(queued.job.size for queued in jobs) >= self.max_batch
                remaining = jobs[0].arrived + self.max_wait - time.monotonic()
                if full or self._closing or remaining <= 0:
                    break
                self._changed.wait(remaining)
            self._queue = [queued for queued in self._queue if queued not in jobs]
            self._running = jobs
            self.observer.queue_changed(len(self._queue))
            return jobs

    def _select(self) -> list[QueuedJob]:
        """Select the oldest job and later ones with its batch key, in order, that fit."""
        jobs, size = self._queue[:1], self._queue[0].job.size
        key = jobs[0].job.batch_key
        for queued in self._queue[1:]:
            if queued.job.batch_key == key and size + queued.job.size <= self.max_batch:
                jobs.append(queued)
                size += queued.job.size
        return jobs

    def _run_jobs(self, jobs: Sequence[QueuedJob]) -> None:
        batch, started = JobBatch(jobs), time.monotonic()
        try:
            results = self.run_batch(batch)
        except Abandoned:
            return
        except Exception as error:
            alone = len(jobs) == 1
            for queued in jobs:
                if alone or queued.has_partial_result:
                    queued.on_error(error)
                else:
                    self._run_jobs([queued])
            return
        self.observer.batch_done(batch, time.monotonic() - started)
        for queued, result in zip(jobs, results, strict=True):
            queued.on_result(result)
