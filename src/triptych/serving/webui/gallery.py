"""Gallery of images, with previews while a pipeline call runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from triptych.inference.generation_config import PROMPT_SETTINGS
from triptych.inference.image_output import ImageOutput
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.webui.controls import arguments, seed_row, sliders
from triptych.serving.webui.number_inputs import slider
from triptych.serving.webui.progress import ImageCall, iterate_updates
from triptych.serving.webui.session import MAX_IMAGES, Page, new_seed, status


def gallery_updates(
    page: Page,
    call: ImageCall,
    *,
    text: str,
    seed: int,
    gallery: gr.Gallery,
    status_line: gr.HTML,
) -> Iterator[dict[gr.components.Component, Any]]:
    """Yield the updates of the page while a call generates images.

    Args:
        call: pipeline call.
        text: prompt or instruction, for the names of files.
        seed: seed of the first image.

    Raises:
        UserError: an error of the call.
    """
    started = time.perf_counter()
    for update in iterate_updates(call, page.closing):
        if update.progress is not None:
            changes: dict[gr.components.Component, Any] = {status_line: status(update.progress)}
            if update.images is not None:
                changes[gallery] = _grid([page.write(each, "preview") for each in update.images])
            yield changes
            continue
        seconds = time.perf_counter() - started
        number = len(update.images)
        yield {
            status_line: status(None, f"{number} image{'s' * (number > 1)} in {seconds:.1f} s"),
            gallery: _grid(
                [
                    (page.write(each, f"{text} seed {seed + n}"), f"seed {seed + n}")
                    for n, each in enumerate(update.images)
                ]
            ),
        }


def sampling_controls(
    pipe: UnifiedPipeline, names: Sequence[str] = PROMPT_SETTINGS
) -> list[gr.components.Component]:
    """Add the controls of a call: number of images, seed, new seeds, and settings of `names`."""
    count = slider(1, MAX_IMAGES, value=4, step=1, label="Images")
    seed, fresh = seed_row()
    with gr.Accordion("Sampling", open=False):
        settings = sliders(pipe, names)
    return [count, seed, fresh, *settings]


def run_call(
    page: Page,
    call: Callable[..., ImageOutput],
    *,
    text: str,
    values: Sequence[Any],
    outputs: tuple[gr.HTML, gr.Gallery, gr.Number],
    names: Sequence[str] = PROMPT_SETTINGS,
) -> Iterator[dict[gr.components.Component, Any]]:
    """Yield the updates of the page while a pipeline call generates images.

    Args:
        call: pipeline call without the arguments of `sampling_controls`.
        text: prompt or instruction, for the names of files.
        values: values of `sampling_controls`.
        outputs: status line, gallery and seed.
        names: settings among the values.

    Raises:
        UserError: an error of the call.
    """
    count, seed, fresh, *settings = values
    status_line, gallery, seed_box = outputs
    first = new_seed() if fresh or seed is None else seed
    call = partial(call, num_images_per_prompt=count, seed=first, **arguments(settings, names))

    def run(callback: Callable) -> Any:
        return call(callback_on_step_end=callback).images

    updates = gallery_updates(
        page, run, text=text, seed=first, gallery=gallery, status_line=status_line
    )
    for changes in updates:
        yield {seed_box: first, **changes}


def _grid(images: list) -> gr.Gallery:
    """Create a gallery in a square grid, so that images are as large as possible."""
    return gr.Gallery(images, columns=math.ceil(math.sqrt(len(images))))


def add_gallery(page: Page) -> tuple[gr.HTML, gr.Gallery]:
    """Add a status line and, below it, a gallery."""
    status_line = gr.HTML(status(None), padding=False)
    gallery = gr.Gallery(
        show_label=False,
        height=736,
        object_fit="contain",
        format="png",
        buttons=["download", "fullscreen"],
        elem_classes=page.css_classes,
        interactive=False,
    )
    return status_line, gallery
