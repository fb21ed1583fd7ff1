"""The tab that makes pictures of a prompt."""

from __future__ import annotations

from functools import partial

import gradio as gr

from triptych.serving.webui.controls import arguments, seed_row, sliders
from triptych.serving.webui.gallery import gallery_of, shown
from triptych.serving.webui.number_inputs import slider
from triptych.serving.webui.session import MOST_PICTURES, Page, in_words, new_seed, until_stopped

EXAMPLES = (
    "a photo of a red circle left of a blue square",
    "a photo of three green triangles",
    "a photo of a yellow star",
)
SHOWN = 6


def generate_tab(page: Page) -> None:
    """Inside a `gr.Tab`: prompt and settings on the left, pictures on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                label="Prompt", lines=3, placeholder=EXAMPLES[0], elem_id="generate-prompt"
            )
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="generate-stop")
            count = slider(1, MOST_PICTURES, 4, 1, "Pictures")
            seed, fresh = seed_row()
            with gr.Accordion("Sampling", open=False):
                negative = gr.Textbox(
                    label="Negative prompt", info="what guidance leads away from; may be empty"
                )
                settings = sliders(page.pipe)
            gr.Examples(
                [[text] for text in (page.prompts or EXAMPLES)[:SHOWN]], prompt, label="For example"
            )
        with gr.Column(scale=3, min_width=320):
            line, gallery = gallery_of(page)

    def make(prompt, negative, count, seed, fresh, *settings):
        with in_words():
            first = new_seed() if fresh or seed is None else seed
            call = partial(
                page.pipe.generate,
                prompt,
                count,
                first,
                negative=negative or None,
                **arguments(settings),
            )
            for changes in shown(
                page, lambda tell: call(callback=tell), prompt, first, gallery, line
            ):
                yield {seed_box: first, **changes}

    seed_box = seed
    until_stopped(
        [run.click, prompt.submit],
        stop,
        make,
        [prompt, negative, count, seed, fresh, *settings],
        [gallery, line, seed],
        line,
    )
