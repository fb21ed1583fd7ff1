"""A call of the pipeline, shown while it runs: its pictures appear step by step in a gallery."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from triptych.serving.webui.progress import Work, follow
from triptych.serving.webui.session import Page, status


def shown(
    page: Page, work: Work, text: str, seed: int, gallery: gr.Gallery, line: gr.HTML
) -> Iterator[dict[gr.components.Component, Any]]:
    """What changes on the page while `work` makes pictures of `text` from `seed` on.

    Raises:
        UserError: as the call.
    """
    started = time.perf_counter()
    for seen in follow(work, page.closing):
        if seen.progress is not None:
            changes: dict[gr.components.Component, Any] = {line: status(seen.progress)}
            if seen.pictures is not None:
                changes[gallery] = _grid([page.write(each, "preview") for each in seen.pictures])
            yield changes
            continue
        taken = time.perf_counter() - started
        number = len(seen.pictures)
        yield {
            line: status(None, f"{number} picture{'s' * (number > 1)} in {taken:.1f} s"),
            gallery: _grid(
                [
                    (page.write(each, f"{text} seed {seed + n}"), f"seed {seed + n}")
                    for n, each in enumerate(seen.pictures)
                ]
            ),
        }


def _grid(pictures: list) -> gr.Gallery:
    """As large as they go."""
    return gr.Gallery(pictures, columns=math.ceil(math.sqrt(len(pictures))))


def gallery_of(page: Page) -> tuple[gr.HTML, gr.Gallery]:
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
