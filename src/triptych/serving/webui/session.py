"""State that the tabs share: models, image folder, errors."""

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
"""Prefix of the folders of files that the page writes, and of uploads."""
MIN_SMOOTH_SIDE = 256
"""Side in pixels below which images are enlarged without smoothing."""
MAX_IMAGES = 16
MODEL_TURN = "model"
"""Concurrency id of the events that run the model, one at a time."""
ONE_AT_A_TIME = {"concurrency_id": MODEL_TURN, "concurrency_limit": 1}


@dataclass
class Page:
    """Shared state of the tabs."""

    models: Models
    votes: Votes
    prompts: Sequence[str]
    """Prompts to vote on; may be empty."""
    folder: Path
    """Folder of images for the browser, removed at the end."""
    uploads: Uploads = field(default_factory=Uploads)
    """ImageDecoder of uploaded images."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Event that stops running calls at their next step, at the end."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    @property
    def pipe(self) -> UnifiedPipeline:
        """The model that all tabs use."""
        return self.models[self.models.names[0]]

    @property
    def sizes(self) -> ImageSizes:
        """Image sizes of the model that all tabs use."""
        return ImageSizes.of(self.pipe)

    @property
    def css_classes(self) -> list[str]:
        """CSS classes of a component that shows images of this model."""
        return ["images", *(["pixelated"] if self.pipe.model.image_size < MIN_SMOOTH_SIDE else [])]

    def write(self, image: Image.Image, name: str) -> str:
        """Write an image with its metadata to a new PNG file; return the path."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        path = folder / f"{_file_name(name)}.png"
        image.save(path)
        return str(path)


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "image"


@contextmanager
def errors_for_viewers() -> Iterator[None]:
    """Show errors to viewers in one sentence, without a traceback."""
    try:
        yield
    except UserError as error:
        sentence = re.sub(
            rf"\S*{FOLDER}\S*/", "", str(error)
        )  # viewers know the names of their files only
        raise gr.Error(html.escape(sentence), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("the page could not answer")
        raise gr.Error(
            "something failed inside; see the log of `triptych app`.",
            print_exception=False,
        ) from error


def new_seed() -> int:
    """Draw a seed that browsers show exactly."""
    return secrets.randbits(31)


def status(progress: Progress | None, done: str = "") -> str:
    """Return the HTML of a progress bar, or of the text `done` after the call."""
    if progress is None:
        return f'<div class="status">{html.escape(done)}</div>'
    share = progress.step / progress.steps
    return (
        f'<div class="status">{progress.stage}: step {progress.step} of {progress.steps}'
        f'<div class="bar"><div style="width:{share:.0%}"></div></div></div>'
    )


def add_run_and_stop(
    triggers: list[Any],
    stop: gr.Button,
    handler: Callable,
    *,
    inputs: list,
    outputs: list,
    status_line: Any,
) -> None:
    """Connect events that run a handler, with progress at `status_line`, and the button to stop."""
    running = gr.on(
        triggers,
        handler,
        inputs,
        outputs,
        show_progress_on=status_line,
        show_progress="minimal",
        trigger_mode="multiple",  # "once" would wait for a stopped call
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: status(None, "stopped"), None, status_line, cancels=running, queue=False)
