"""Progress of a call on the page: previews while it runs, and its end when the page closes."""

import threading
import time

import pytest
from PIL import Image

from triptych.inference.pipeline import Progress
from triptych.serving.webui.progress import iterate_updates

STEPS = 50
OPEN = threading.Event()


def image(shade):
    return Image.new("RGB", (4, 4), (shade, 0, 0))


def work(done, wait=None):
    """A call that takes STEPS steps, each written to `done`; `wait` comes before each."""

    def call(callback):
        for step in range(1, STEPS + 1):
            if wait:
                wait()
            done.append(step)
            callback(Progress("features", step, STEPS, range(1), lambda s=step: [image(s)]))
        return [image(255)]

    return call


def test_previews_come_first_and_the_image_last():
    *before, last = iterate_updates(work([]), OPEN)
    assert before[0].progress.step == 1 and before[0].images is not None
    assert last.progress is None and last.images[0].getpixel((0, 0)) == (255, 0, 0)
    steps = [seen.progress.step for seen in before]
    assert steps == sorted(steps)


def test_closing_ends_the_call():
    done, step = [], threading.Semaphore(1)
    ended = threading.Event()

    def watched(callback):
        try:
            return work(done, step.acquire)(callback)
        finally:
            ended.set()

    seen = iterate_updates(watched, OPEN)
    next(seen)
    seen.close()
    time.sleep(0.1)  # longer than the rest between two words
    step.release(3)  # the next step sees that nobody looks; more could be taken
    assert ended.wait(10)
    assert done == [1, 2]


def test_a_closing_page_ends_all_calls():
    closing, done = threading.Event(), []
    closing.set()
    assert list(iterate_updates(work(done), closing)) == []
    assert done == [1]


def test_errors_come_through():
    def call(callback):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(iterate_updates(call, OPEN))


def test_costly_previews_are_made_once():
    made = []

    def slow():
        made.append(1)
        time.sleep(0.3)
        return [image(1)]

    def call(callback):
        for step in range(1, STEPS + 1):
            callback(Progress("features", step, STEPS, range(1), slow))
        return []

    list(iterate_updates(call, OPEN))
    assert len(made) == 1
