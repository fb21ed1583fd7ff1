"""Iterator over the values of a callback-based call."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """The iterator was closed."""


def iterate_callback(run: Callable[[Callable[[T], None]], object]) -> Iterator[T]:
    """Yield every value that `run(callback)` passes to the callback; `run` has its own thread.

    Exceptions of `run` are raised here. Closing the iterator makes the next call of the callback
    raise, which ends `run`.
    """
    events: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
    closed = threading.Event()

    def callback(value: T) -> None:
        if closed.is_set():
            raise _Closed
        events.put(("value", value))

    def work() -> None:
        try:
            run(callback)
            events.put(("end", None))
        except _Closed:
            pass
        except BaseException as error:
            events.put(("error", error))

    threading.Thread(target=work, name="triptych-stream", daemon=True).start()
    try:
        while True:
            kind, value = events.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
