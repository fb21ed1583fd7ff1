"""A call of the pipeline, shown while it runs: its images appear step by step in a gallery."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from triptych.inference.image_output import ImageOutput
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.webui.controls import arguments, seed_row, sliders
from triptych.serving.webui.number_inputs import slider
from triptych.serving.webui.progress import Work, follow
from triptych.serving.webui.session import MAX_IMAGES, Page, new_seed, status


def shown(
    page: Page, work: Work, text: str, seed: int, gallery: gr.Gallery, line: gr.HTML
) -> Iterator[dict[gr.components.Component, Any]]:
    """Updates of the page while `work` makes images of `text` from `seed` on.

    Raises:
        UserError: an error of the call.
    """
    started = time.perf_counter()
    for seen in follow(work, page.closing):
        if seen.progress is not None:
            changes: dict[gr.components.Component, Any] = {line: status(seen.progress)}
            if seen.images is not None:
                changes[gallery] = _grid([page.write(each, "preview") for each in seen.images])
            yield changes
            continue
        taken = time.perf_counter() - started
        number = len(seen.images)
        yield {
            line: status(None, f"{number} image{'s' * (number > 1)} in {taken:.1f} s"),
            gallery: _grid(
                [
                    (page.write(each, f"{text} seed {seed + n}"), f"seed {seed + n}")
                    for n, each in enumerate(seen.images)
                ]
            ),
        }


def sampling_controls(pipe: UnifiedPipeline) -> list[gr.components.Component]:
    """Number of images, seed, whether each click takes a new one, and the sampling settings."""
    count = slider(1, MAX_IMAGES, 4, 1, "Images")
    seed, fresh = seed_row()
    with gr.Accordion("Sampling", open=False):
        settings = sliders(pipe)
    return [count, seed, fresh, *settings]


def run_call(
    page: Page,
    call: Callable[..., ImageOutput],
    text: str,
    values: Sequence[Any],
    shown_in: tuple[gr.HTML, gr.Gallery, gr.Number],
) -> Iterator[dict[gr.components.Component, Any]]:
    """What changes on the page while a call of the pipeline makes images of `text`.

    Args:
        call: the call, but for what `sampling_controls` decide.
        values: values of `sampling_controls`.
        shown_in: line, gallery and seed.

    Raises:
        UserError: an error of the call.
    """
    count, seed, fresh, *settings = values
    line, gallery, seed_box = shown_in
    first = new_seed() if fresh or seed is None else seed
    call = partial(call, num_images_per_prompt=count, seed=first, **arguments(settings))

    def work(tell: Callable) -> Any:
        return call(callback_on_step_end=tell).images

    for changes in shown(page, work, text, first, gallery, line):
        yield {seed_box: first, **changes}


def _grid(images: list) -> gr.Gallery:
    """Gallery in a square grid, so that images are as large as possible."""
    return gr.Gallery(images, columns=math.ceil(math.sqrt(len(images))))


def add_gallery(page: Page) -> tuple[gr.HTML, gr.Gallery]:
    """A line of progress and, below it, a gallery."""
    line = gr.HTML(status(None), padding=False)
    gallery = gr.Gallery(
        show_label=False,
        height=736,
        object_fit="contain",
        format="png",
        buttons=["download", "fullscreen"],
        elem_classes=page.look,
        interactive=False,
    )
    return line, gallery
