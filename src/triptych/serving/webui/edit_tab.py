"""Tabs that edit an image by an instruction, and reconstruct an image."""

from __future__ import annotations

from functools import partial

import gradio as gr

from triptych.inference.generation_config import PROMPT_SETTINGS, SETTINGS
from triptych.serving.webui.gallery import add_gallery, run_call, sampling_controls
from triptych.serving.webui.session import ONE_AT_A_TIME, Page, add_run_and_stop, errors_for_viewers
from triptych.utils.errors import UserError


def image_box(page: Page, label: str, name: str) -> gr.Image:
    """Create an image input that returns the path of a file, which `Page.uploads` reads."""
    box = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=280,
        elem_id=name,
        elem_classes=page.css_classes,
    )
    # gradio would open the file, and log a traceback for one that is not an image
    box.preprocess = lambda payload: payload and payload.path
    return box


def edit_tab(page: Page) -> None:
    """Build the tab: image and instruction on the left, images on the right."""
    names = SETTINGS if page.pipe.model.generation.takes_source else PROMPT_SETTINGS
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            image = image_box(page, "Image", "edit-image")
            instruction = gr.Textbox(
                label="Instruction",
                lines=2,
                placeholder="make the circle blue",
                elem_id="edit-instruction",
            )
            with gr.Row():
                run = gr.Button("Edit", variant="primary", elem_id="edit")
                stop = gr.Button("Stop")
            controls = sampling_controls(page.pipe, names)
        with gr.Column(scale=3, min_width=320):
            status_line, gallery = add_gallery(page)

    outputs = status_line, gallery, controls[1]

    def edit(image, instruction, *values):
        with errors_for_viewers():
            if image is None:
                raise UserError("there is no image to edit; put one into the box.")
            (decoded,) = page.uploads.read([image], page.sizes.edit_input)
            call = partial(page.pipe.edit, decoded, prompt=instruction)
            yield from run_call(
                page, call, text=instruction, values=values, outputs=outputs, names=names
            )

    add_run_and_stop(
        [run.click, instruction.submit],
        stop,
        edit,
        inputs=[image, instruction, *controls],
        outputs=list(outputs),
        status_line=status_line,
    )


def reconstruct_tab(page: Page) -> None:
    """Build the tab: an image, and its reconstruction from the model's features."""
    with gr.Row():
        image = image_box(page, "Image", "reconstruct-image")
        output = gr.Image(
            label="Through encoder and decoder",
            height=280,
            elem_classes=page.css_classes,
            interactive=False,
            buttons=["download", "fullscreen"],
        )
    run = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")

    def reconstruct(image):
        with errors_for_viewers():
            if image is None:
                raise UserError("there is no image to reconstruct; put one into the box.")
            decoded = page.uploads.read([image], page.pipe.model.encoder.image_size)
            return page.write(page.pipe.reconstruct(decoded).images[0], "reconstruction")

    run.click(reconstruct, image, output, **ONE_AT_A_TIME)
