"""Server metrics in the Prometheus format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from triptych.serving.asgi.middleware import CLIENT_CLOSED_REQUEST
from triptych.serving.http.batching import Call, Observer
from triptych.serving.http.jobs import ChatJob

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Observer):
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self.requests = self._make(
            Counter, "requests", "Answered requests.", ["route", "method", "status"]
        )
        self.latency = self._make(
            Histogram, "request_seconds", "From request to the end of its answer.", ["route"],
            buckets=SECONDS,
        )  # fmt: skip
        self.queue = self._make(Gauge, "queue_length", "Requests that wait for the model.")
        self.batches = self._make(
            Histogram, "batch_size", "Images or conversations in a call of the model.", ["kind"],
            buckets=SIZES,
        )  # fmt: skip
        self.work = self._make(
            Histogram, "batch_seconds", "A call of the model.", ["kind"], buckets=SECONDS
        )
        self.images = self._make(Counter, "images", "Images made.")
        self.tokens = self._make(Counter, "tokens", "Tokens of chats.", ["kind"])
        self.rejected = self._make(
            Counter, "rejected", "Requests that found no place, or a server that shuts down.",
            ["reason"],
        )  # fmt: skip
        self.cancelled = self._make(Counter, "cancelled", "Requests whose clients left.")
        self.timeouts = self._make(Counter, "timeouts", "Requests that took too long.")

    def _make(self, kind: type, name: str, text: str, labels: list[str] | None = None, **more):
        return kind(f"triptych_{name}", text, labels or [], registry=self.registry, **more)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer, or a client that left."""
        self.requests.labels(route, method, status).inc()
        self.latency.labels(route).observe(seconds)
        if status == CLIENT_CLOSED_REQUEST:
            self.cancelled.inc()

    def queued(self, length: int) -> None:
        self.queue.set(length)

    def worked(self, call: Call, seconds: float) -> None:
        first, size = call.works[0], sum(work.size for work in call.works)
        kind = "chat" if isinstance(first, ChatJob) else "edit" if first.images else "generate"
        self.batches.labels(kind).observe(size)
        self.work.labels(kind).observe(seconds)
        if kind != "chat":
            self.images.inc(size)
