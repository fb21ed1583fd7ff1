"""Tab that generates images of a prompt."""

from __future__ import annotations

from functools import partial

import gradio as gr

from triptych.serving.webui.gallery import add_gallery, run_call, sampling_controls
from triptych.serving.webui.session import Page, add_run_and_stop, errors_for_viewers

EXAMPLES = (
    "a photo of a red circle left of a blue square",
    "a photo of three green triangles",
    "a photo of a yellow star",
)
MAX_EXAMPLES = 6


def generate_tab(page: Page) -> None:
    """Build the tab: prompt and settings on the left, images on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                label="Prompt", lines=3, placeholder=EXAMPLES[0], elem_id="generate-prompt"
            )
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="generate-stop")
            controls = sampling_controls(page.pipe)
            gr.Examples(
                [[text] for text in (page.prompts or EXAMPLES)[:MAX_EXAMPLES]],
                prompt,
                label="For example",
            )
        with gr.Column(scale=3, min_width=320):
            status_line, gallery = add_gallery(page)

    outputs = status_line, gallery, controls[1]

    def generate(prompt, *values):
        with errors_for_viewers():
            call = partial(page.pipe, prompt)
            yield from run_call(page, call, text=prompt, values=values, outputs=outputs)

    add_run_and_stop(
        [run.click, prompt.submit],
        stop,
        generate,
        inputs=[prompt, *controls],
        outputs=list(outputs),
        status_line=status_line,
    )
