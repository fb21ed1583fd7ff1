"""Following a call of the pipeline while it runs, and ending it when nobody waits any more."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from triptych.pipeline import Progress

PREVIEW_SHARE = 0.4
"""Most of a call's time that previews may take, after the first."""

Work = Callable[[Callable[[Progress], None]], list[Image.Image]]
"""A call of the pipeline that is given its callback."""


@dataclass
class Seen:
    """How far a call has come."""

    progress: Progress | None
    """None when it is done."""
    pictures: list[Image.Image] | None
    """As they look now, or as they are when it is done; None: as before."""


class Stopped(Exception):
    """Ends a call from inside its callback."""


def follow(work: Work, closing: threading.Event | None = None) -> Iterator[Seen]:
    """Run `work` in a thread and yield what there is to see; the finished pictures come last.

    What comes faster than it is taken is joined. Closing the iterator ends the call at its next
    step, and waits for that; so does `closing`, once it is set.

    Raises:
        whatever `work` raises.
    """
    news: queue.Queue[Seen | BaseException] = queue.Queue()
    left, closing = threading.Event(), closing or threading.Event()
    previews = _Budget()

    def tell(progress: Progress) -> None:
        if left.is_set() or closing.is_set():
            raise Stopped
        pictures = previews.spend(progress.preview) if previews.suffices() else None
        news.put(Seen(progress, pictures))

    def run() -> None:
        try:
            news.put(Seen(None, work(tell)))
        except BaseException as error:  # raised again where it is waited for
            news.put(error)

    worker = threading.Thread(target=run, name="triptych app: a call", daemon=False)
    worker.start()
    try:
        while True:
            seen = _joined(news)
            if isinstance(seen, Stopped):
                return
            if isinstance(seen, BaseException):
                raise seen
            yield seen
            if seen.progress is None:
                return
    finally:
        left.set()
        worker.join()


def _joined(news: queue.Queue[Seen | BaseException]) -> Seen | BaseException:
    """The newest, with the newest pictures; waits where there is none."""
    seen = news.get()
    while isinstance(seen, Seen) and not news.empty():
        newer = news.get()
        if isinstance(newer, Seen) and newer.pictures is None:
            newer.pictures = seen.pictures
        seen = newer
    return seen


class _Budget:
    """The first preview is made at once, later ones only from their share of the time."""

    def __init__(self) -> None:
        self.started, self.spent = time.perf_counter(), 0.0

    def suffices(self) -> bool:
        return self.spent <= PREVIEW_SHARE * (time.perf_counter() - self.started)

    def spend(self, preview: Callable[[], list[Image.Image]]) -> list[Image.Image]:
        start = time.perf_counter()
        pictures = preview()
        self.spent += time.perf_counter() - start
        return pictures
