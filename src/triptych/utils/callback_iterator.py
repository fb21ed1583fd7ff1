"""Turn a callback-based call into an iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """Nobody listens any more."""


def iterate_callback(run: Callable[[Callable[[T], None]], object]) -> Iterator[T]:
    """Yield everything that `run(tell)` passes to `tell`; `run` works in a thread of its own.

    Exceptions of `run` are raised here. Closing the iterator makes the next `tell` raise in `run`,
    which so ends.
    """
    told: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
    closed = threading.Event()

    def tell(piece: T) -> None:
        if closed.is_set():
            raise _Closed
        told.put(("piece", piece))

    def work() -> None:
        try:
            run(tell)
            told.put(("end", None))
        except _Closed:
            pass
        except BaseException as error:
            told.put(("error", error))

    threading.Thread(target=work, name="triptych-stream", daemon=True).start()
    try:
        while True:
            kind, value = told.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
