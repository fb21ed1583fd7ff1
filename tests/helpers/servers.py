"""Servers on free ports, and a fake pipeline that a test can inspect and hold up.

Use `running` for requests over HTTP; `FakePipeline` where the images do not matter.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
from openai import OpenAI
from PIL import Image

from triptych.prompts import PromptError
from triptych.serving.asgi.server import Server, open_port
from triptych.serving.http.app import create_app
from triptych.serving.images.sizes import ImageSizes

SIZES = ImageSizes(generated=8, edit_input=8, chat_input=8)


class FakePipeline:
    """Records its calls. A step waits for `gate`, which a test clears and sets."""

    def __init__(self, steps: int = 3) -> None:
        self.steps, self.calls = steps, []
        self.gate, self.begun, self.steps_made = threading.Event(), threading.Event(), 0
        self.gate.set()

    def _step(self) -> None:
        self.begun.set()
        assert self.gate.wait(20), "the test holds the pipeline up"
        self.steps_made += 1

    def __call__(self, prompts, *, seed, batch_size, generation_config, callback_on_step_end):
        if "bad" in prompts:
            raise PromptError("the prompt is bad; write another.")
        if "crash" in prompts:
            raise RuntimeError("/secret/path: a bug")
        self.calls.append(SimpleNamespace(prompts=prompts, seeds=seed, settings=generation_config))
        images = [Image.new("RGB", (8, 8), (each % 256, 0, 0)) for each in seed]
        for step in range(1, self.steps + 1):
            self._step()
            callback_on_step_end(
                SimpleNamespace(
                    stage="pixels", step=step, steps=self.steps,
                    images=range(len(images)), preview=lambda: images,
                )
            )  # fmt: skip
        return SimpleNamespace(images=images)

    def chat_batch(self, conversations, on_part, **settings):
        self.calls.append(SimpleNamespace(conversations=conversations, settings=settings))
        for piece in ["one", " two", " three"]:
            self._step()
            for number in range(len(conversations)):
                on_part(number, piece)
        return [
            SimpleNamespace(
                text="one two three",
                content=["one two three"],
                prompt_tokens=5,
                completion_tokens=3,
                finish_reason="stop",
            )  # fmt: skip
            for _ in conversations
        ]


class Running:
    """A server that runs in a thread."""

    def __init__(self, app, port: int) -> None:
        self.app, self.url = app, f"http://127.0.0.1:{port}"
        self.scheduler, self.admission = app.state.context.scheduler, app.state.admission

    def http(self, **options) -> httpx.Client:
        # Nothing is encrypted here, and reading the authorities' certificates takes a while.
        return httpx.Client(base_url=self.url, timeout=20, verify=False, **options)

    def openai(self, key: str = "none", **options) -> OpenAI:
        options = {"max_retries": 0, "timeout": 20} | options
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)


@contextmanager
def running(
    pipeline,
    sizes: ImageSizes = SIZES,
    name: str = "tiny",
    max_connections: int | None = None,
    **options,
):
    """A server of `pipeline`, with `create_app`'s options."""
    app = create_app(pipeline, name, sizes, **options)
    bound = open_port("127.0.0.1", 0)
    server = Server(app, max_connections)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(app, bound.getsockname()[1])
    finally:
        if isinstance(pipeline, FakePipeline):
            pipeline.gate.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(true, seconds: float = 20) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)
