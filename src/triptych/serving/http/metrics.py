"""Server metrics in the Prometheus format."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from triptych.serving.asgi.middleware import CLIENT_CLOSED_REQUEST
from triptych.serving.http.batching import JobBatch, Observer
from triptych.serving.http.jobs import ChatJob

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: folder by which replicas share their metrics."""


class Metrics(Observer):
    """Metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self.requests = self._make(
            Counter, "requests", "Answered requests.", ["route", "method", "status"]
        )
        self.latency = self._make(
            Histogram, "request_seconds", "Seconds until the end of the response.", ["route"],
            buckets=SECONDS,
        )  # fmt: skip
        self.queue = self._make(
            Gauge, "queue_length", "Queued requests.", multiprocess_mode="livesum"
        )
        self.batches = self._make(
            Histogram, "batch_size", "Images or conversations in a batch.", ["kind"],
            buckets=SIZES,
        )  # fmt: skip
        self.batch_seconds = self._make(
            Histogram, "batch_seconds", "Seconds of a batch.", ["kind"], buckets=SECONDS
        )
        self.images = self._make(Counter, "images", "Generated images.")
        self.tokens = self._make(Counter, "tokens", "Tokens of chats.", ["kind"])
        self.rejected = self._make(
            Counter, "rejected", "Requests refused for lack of room, or because of the shutdown.",
            ["reason"],
        )  # fmt: skip
        self.cancelled = self._make(Counter, "cancelled", "Requests whose client disconnected.")
        self.timeouts = self._make(Counter, "timeouts", "Requests that exceeded the time limit.")

    def _make(self, kind: type, name: str, text: str, labels: list[str] | None = None, **more):
        return kind(f"triptych_{name}", text, labels or [], registry=self.registry, **more)

    def exposed(self) -> CollectorRegistry:
        """Return what /metrics shows: this server, or the sums over all replicas."""
        if (folder := os.environ.get(SHARED_FOLDER)) is None:
            return self.registry
        for path in Path(folder).glob("gauge_livesum_*.db"):
            if not Path("/proc", pid := path.stem.rpartition("_")[2]).exists():
                mark_process_dead(pid)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a response, or a client that disconnected."""
        self.requests.labels(route, method, status).inc()
        self.latency.labels(route).observe(seconds)
        if status == CLIENT_CLOSED_REQUEST:
            self.cancelled.inc()

    def queue_changed(self, length: int) -> None:
        self.queue.set(length)

    def batch_done(self, batch: JobBatch, seconds: float) -> None:
        first, size = batch.jobs[0], sum(job.size for job in batch.jobs)
        kind = "chat" if isinstance(first, ChatJob) else "edit" if first.images else "generate"
        self.batches.labels(kind).observe(size)
        self.batch_seconds.labels(kind).observe(seconds)
        if kind != "chat":
            self.images.inc(size)
