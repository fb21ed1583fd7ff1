"""The tab that answers questions about images, in several turns."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gradio as gr

from triptych.serving.webui.number_inputs import slider
from triptych.serving.webui.session import ONE_AT_A_TIME, Page, errors_for_viewers
from triptych.utils.errors import UserError

Turns = list[dict[str, Any]]
"""As `UnifiedPipeline.chat` takes them, with paths of images in place of images."""


def chat_tab(page: Page) -> None:
    """Inside a `gr.Tab`: the conversation, and a box for text and images below it."""
    talk = gr.Chatbot(
        show_label=False,
        height=480,
        buttons=["copy"],
        placeholder="Put an image into the box below and ask about it.",
        elem_classes=page.look,
        elem_id="talk",
        feedback_options=None,
    )
    turns = gr.State([])
    box = gr.MultimodalTextbox(
        show_label=False,
        sources=["upload"],
        file_types=["image"],
        file_count="multiple",
        placeholder="What colour is the circle?",
        elem_id="question",
    )
    with gr.Row():
        stop = gr.Button("Stop", elem_id="chat-stop")
        clear = gr.Button("Clear", elem_id="chat-clear")
    with gr.Accordion("Answers", open=False), gr.Row():
        length = slider(1, 2048, 256, 1, "Most tokens of an answer")
        temperature = slider(0, 2, 0, 0.05, "Temperature", info="0 is the likeliest answer")

    def answer(message, before, length, temperature):
        with errors_for_viewers():
            asked = [*before, _question(message)]
            pieces = page.pipe.chat(  # what is wrong is said now, while it is still in the box
                _decoded(page, asked), max_new_tokens=length, temperature=temperature, stream=True
            )
            with closing(pieces):
                yield {talk: _shown(asked), turns: asked, box: None}
                said = ""
                for piece in pieces:
                    said += piece
                    now = [*asked, {"role": "assistant", "content": said}]
                    yield {talk: _shown(now), turns: now}
                    if page.closing.is_set():
                        return

    running = box.submit(
        answer,
        [box, turns, length, temperature],
        [talk, turns, box],
        show_progress="minimal",
        trigger_mode="multiple",  # "once" would wait for a call that was stopped
        **ONE_AT_A_TIME,
    )
    stop.click(None, cancels=running, queue=False)
    talk.clear(lambda: [], None, turns, cancels=running, queue=False)  # its own dustbin
    clear.click(lambda: ([], [], None), None, [talk, turns, box], cancels=running, queue=False)


def _question(message: dict[str, Any]) -> dict[str, Any]:
    """One turn of the viewer: images first, then the question about them."""
    text = (message["text"] or "").strip()
    if not text:
        raise UserError("the question is empty; ask something.")
    images = [{"type": "image", "image": file} for file in message["files"]]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def _decoded(page: Page, turns: Turns) -> Turns:
    """The turns with their images decoded.

    Raises:
        UserError: as `Uploads.read`.
    """
    parts = [part for turn in turns for part in _parts(turn["content"])]
    paths = list(dict.fromkeys(part["image"] for part in parts if part["type"] == "image"))
    images = dict(zip(paths, page.uploads.read(paths, page.sizes.chat_input), strict=True))

    def decoded(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "image": images[part["image"]]} if part["type"] == "image" else part

    return [{**turn, "content": [*map(decoded, _parts(turn["content"]))]} for turn in turns]


def _shown(turns: Turns) -> list[dict[str, Any]]:
    """The turns as the chatbot component takes them: every part a bubble of its own."""
    return [
        {
            "role": turn["role"],
            "content": {"path": part["image"]} if part["type"] == "image" else part["text"],
        }
        for turn in turns
        for part in _parts(turn["content"])
    ]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
