"""The tab that edits an image by an instruction."""

from __future__ import annotations

from functools import partial

import gradio as gr

from triptych.serving.webui.gallery import add_gallery, run_call, sampling_controls
from triptych.serving.webui.session import ONE_AT_A_TIME, Page, add_run_and_stop, errors_for_viewers
from triptych.utils.errors import UserError


def image_box(page: Page, label: str, name: str) -> gr.Image:
    """Where a viewer puts an image; `Page.uploads` reads it, which says what is wrong."""
    box = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=280,
        elem_id=name,
        elem_classes=page.look,
    )
    # gradio's own opens the file, and answers a non-image with a traceback in the log
    box.preprocess = lambda payload: payload and payload.path
    return box


def edit_tab(page: Page) -> None:
    """Inside a `gr.Tab`: image and instruction on the left, images on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            image = image_box(page, "ImageInput", "edit-image")
            instruction = gr.Textbox(
                label="Instruction",
                lines=2,
                placeholder="make the circle blue",
                elem_id="edit-instruction",
            )
            with gr.Row():
                run = gr.Button("Edit", variant="primary", elem_id="edit")
                stop = gr.Button("Stop")
            controls = sampling_controls(page.pipe)
        with gr.Column(scale=3, min_width=320):
            line, gallery = add_gallery(page)

    shown_in = line, gallery, controls[1]

    def make(image, instruction, *values):
        with errors_for_viewers():
            if image is None:
                raise UserError("there is no image to edit; put one into the box.")
            (decoded,) = page.uploads.read([image], page.sizes.edit_input)
            call = partial(page.pipe.edit, decoded, prompt=instruction)
            yield from run_call(page, call, instruction, values, shown_in)

    add_run_and_stop(
        [run.click, instruction.submit],
        stop,
        make,
        [image, instruction, *controls],
        list(shown_in),
        line,
    )


def reconstruct_tab(page: Page) -> None:
    """Inside a `gr.Tab`: an image, and its reconstruction from the model's features."""
    with gr.Row():
        image = image_box(page, "ImageInput", "reconstruct-image")
        made = gr.Image(
            label="Through encoder and decoder",
            height=280,
            elem_classes=page.look,
            interactive=False,
            buttons=["download", "fullscreen"],
        )
    run = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")

    def make(image):
        with errors_for_viewers():
            if image is None:
                raise UserError("there is no image to reconstruct; put one into the box.")
            decoded = page.uploads.read([image], page.pipe.model.encoder.image_size)
            return page.write(page.pipe.reconstruct(decoded).images[0], "reconstruction")

    run.click(make, image, made, **ONE_AT_A_TIME)
