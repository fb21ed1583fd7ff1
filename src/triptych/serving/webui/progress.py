"""Following a call of the pipeline while it runs, and ending it when nobody waits any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from triptych.inference.pipeline import Progress
from triptych.utils.callback_iterator import iterate_callback

PREVIEW_SHARE = 0.4
"""Most of a call's time that previews may take, after the first."""
REST = 0.05
"""Seconds between two words of a call; steps that come faster are passed."""

Work = Callable[[Callable[[Progress], None]], list[Image.Image]]
"""A call of the pipeline that is given its callback."""


@dataclass
class Seen:
    """Progress of a call."""

    progress: Progress | None
    """None when it is done."""
    images: list[Image.Image] | None
    """Current images, finished ones when it is done; None: unchanged."""


class Stopped(Exception):
    """The page ends."""


def follow(work: Work, closing: threading.Event) -> Iterator[Seen]:
    """Run `work` in a thread and yield what there is to see; the finished images come last.

    Closing the iterator ends the call at one of its next steps, and so does setting `closing`.

    Raises:
        Exception: whatever `work` raises.
    """

    def run(tell: Callable[[Seen], None]) -> None:
        pace = _Pace()

        def callback(progress: Progress) -> None:
            if closing.is_set():
                raise Stopped
            images = pace.preview(progress)
            if images is not None or pace.rested():
                tell(Seen(progress, images))

        tell(Seen(None, work(callback)))

    try:
        yield from iterate_callback(run)
    except Stopped:
        return


class _Pace:
    """Rate limiter of previews: the first at once, later ones within a fraction of the run time."""

    def __init__(self) -> None:
        self.started, self.spent, self.told = time.perf_counter(), 0.0, 0.0

    def preview(self, progress: Progress) -> list[Image.Image] | None:
        """The images as they look, unless previews have taken too long already."""
        now = time.perf_counter()
        if self.spent > PREVIEW_SHARE * (now - self.started):
            return None
        images = progress.preview()
        self.told = time.perf_counter()
        self.spent += self.told - now
        return images

    def rested(self) -> bool:
        """Whether it is time for another word; then its time is noted."""
        now = time.perf_counter()
        if now - self.told < REST:
            return False
        self.told = now
        return True
