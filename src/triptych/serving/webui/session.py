"""Shared state of all tabs of the page: models, a folder of images, and errors as sentences."""

from __future__ import annotations

import html
import itertools
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from triptych.inference.pipeline import Progress, UnifiedPipeline
from triptych.serving.images.sizes import ImageSizes
from triptych.serving.webui.models import Models
from triptych.serving.webui.uploads import Uploads
from triptych.serving.webui.votes import Votes
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "triptych-app-"
"""Prefix of the folders that hold files written by the page and uploads."""
SMALL = 256
"""Images of fewer pixels a side are enlarged as squares, not blurred."""
MAX_IMAGES = 16
MODEL_TURN = "model"
"""Events of this name take turns: one computes, others wait."""
ONE_AT_A_TIME = {"concurrency_id": MODEL_TURN, "concurrency_limit": 1}


@dataclass
class Page:
    """Shared state of the tabs."""

    sources: Models
    votes: Votes
    prompts: Sequence[str]
    """That viewers of pairs go through; may be empty."""
    folder: Path
    """Folder of images for the browser; removed when the page ends."""
    uploads: Uploads = field(default_factory=Uploads)
    """Decodes what viewers upload."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the page ends: what still computes stops at its next step."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    @property
    def pipe(self) -> UnifiedPipeline:
        """The model that all tabs use."""
        return self.sources[self.sources.names[0]]

    @property
    def sizes(self) -> ImageSizes:
        """Sides of the images that the model is shown."""
        return ImageSizes.of(self.pipe)

    @property
    def look(self) -> list[str]:
        """CSS classes of a component that shows images of this model."""
        return ["images", *(["pixelated"] if self.pipe.model.image_size < SMALL else [])]

    def write(self, image: Image.Image, name: str) -> str:
        """The path of a new PNG file, with the settings that the image carries."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        path = folder / f"{_file_name(name)}.png"
        image.save(path)
        return str(path)


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "image"


@contextmanager
def errors_for_viewers() -> Iterator[None]:
    """Show errors to the viewer in one sentence, never with a traceback."""
    try:
        yield
    except UserError as error:
        sentence = re.sub(
            rf"\S*{FOLDER}\S*/", "", str(error)
        )  # a viewer knows files by their names
        raise gr.Error(html.escape(sentence), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("the page could not answer")
        raise gr.Error(
            "something went wrong inside; the log of `triptych app` says what.",
            print_exception=False,
        ) from error


def new_seed() -> int:
    """Any number that a browser shows exactly."""
    return secrets.randbits(31)


def status(progress: Progress | None, done: str = "") -> str:
    """HTML of a progress bar of a call; `done` once it is."""
    if progress is None:
        return f'<div class="status">{html.escape(done)}</div>'
    share = progress.step / progress.steps
    return (
        f'<div class="status">{progress.stage}: step {progress.step} of {progress.steps}'
        f'<div class="bar"><div style="width:{share:.0%}"></div></div></div>'
    )


def add_run_and_stop(
    triggers: list[Any], stop: gr.Button, make: Callable, inputs: list, outputs: list, line: Any
) -> None:
    """Let `triggers` start `make`, which shows its progress on `line`, and `stop` end it."""
    running = gr.on(
        triggers,
        make,
        inputs,
        outputs,
        show_progress_on=line,
        show_progress="minimal",
        trigger_mode="multiple",  # "once" would wait for a call that was stopped
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: status(None, "stopped"), None, line, cancels=running, queue=False)
