"""Progress and cancellation of a pipeline call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from triptych.inference.pipeline import Progress
from triptych.utils.callback_iterator import iterate_callback

MAX_PREVIEW_SHARE = 0.4
"""Maximum fraction of the run time for previews after the first one."""
MIN_INTERVAL = 0.05
"""Minimum number of seconds between two updates; faster steps are skipped."""

ImageCall = Callable[[Callable[[Progress], None]], list[Image.Image]]
"""Pipeline call as a function of its step callback."""


@dataclass
class Update:
    """Progress of a call, with a preview or its result."""

    progress: Progress | None
    """None after the last step."""
    images: list[Image.Image] | None
    """Preview, or the result after the last step; None if there is no new preview."""


class PageClosed(Exception):
    """The page is being closed."""


def iterate_updates(call: ImageCall, closing: threading.Event) -> Iterator[Update]:
    """Run a call in a thread and yield its updates; the last one has the result.

    The call stops at one of its next steps if the iterator is closed or `closing` is set.

    Raises:
        Exception: any exception of the call.
    """

    def run(send: Callable[[Update], None]) -> None:
        limiter = _UpdateLimiter()

        def callback(progress: Progress) -> None:
            if closing.is_set():
                raise PageClosed
            images = limiter.preview(progress)
            if images is not None or limiter.is_due():
                send(Update(progress, images))

        send(Update(None, call(callback)))

    try:
        yield from iterate_callback(run)
    except PageClosed:
        return


class _UpdateLimiter:
    """Rate limiter of updates, with previews limited to a fraction of the run time."""

    def __init__(self) -> None:
        self.started, self.spent, self.last_update = time.perf_counter(), 0.0, 0.0

    def preview(self, progress: Progress) -> list[Image.Image] | None:
        """Return a preview, or None if previews have taken too much time."""
        now = time.perf_counter()
        if self.spent > MAX_PREVIEW_SHARE * (now - self.started):
            return None
        images = progress.preview()
        self.last_update = time.perf_counter()
        self.spent += self.last_update - now
        return images

    def is_due(self) -> bool:
        """Return whether an update without a preview is due, and record its time."""
        now = time.perf_counter()
        if now - self.last_update < MIN_INTERVAL:
            return False
        self.last_update = now
        return True
