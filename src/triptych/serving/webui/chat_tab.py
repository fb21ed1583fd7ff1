"""Tab of conversations with images, the viewer's and the model's."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gradio as gr
from PIL import Image

from triptych.serving.webui.number_inputs import slider
from triptych.serving.webui.session import ONE_AT_A_TIME, Page, errors_for_viewers
from triptych.utils.errors import UserError

Messages = list[dict[str, Any]]
"""Messages of `UnifiedPipeline.chat`, with paths in place of images."""


def chat_tab(page: Page) -> None:
    """Build the tab: the conversation, and below it a box for text and images."""
    chatbot = gr.Chatbot(
        show_label=False,
        height=480,
        buttons=["copy"],
        placeholder="Put an image into the box below and ask about it.",
        elem_classes=page.css_classes,
        elem_id="talk",
        feedback_options=None,
    )
    messages = gr.State([])
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
        length = slider(1, 2048, value=256, step=1, label="Maximum number of tokens")
        temperature = slider(
            0, 2, value=0, step=0.05, label="Temperature", info="0 is greedy decoding"
        )

    def answer(message, before, length, temperature):
        with errors_for_viewers():
            request = [*before, _question(message)]
            stream = page.pipe.chat(  # raises errors while the question is still in the box
                _with_images(page, request),
                max_new_tokens=length,
                temperature=temperature,
                stream=True,
            )
            with closing(stream):
                yield {chatbot: _bubbles(request), messages: request, box: None}
                parts: list[dict[str, Any]] = []
                for chunk in stream:
                    _add(page, parts, chunk)
                    current = [*request, {"role": "assistant", "content": [*parts]}]
                    yield {chatbot: _bubbles(current), messages: current}
                    if page.closing.is_set():
                        return

    running = box.submit(
        answer,
        [box, messages, length, temperature],
        [chatbot, messages, box],
        show_progress="minimal",
        trigger_mode="multiple",  # "once" would wait for a stopped call
        **ONE_AT_A_TIME,
    )
    stop.click(None, cancels=running, queue=False)
    chatbot.clear(lambda: [], None, messages, cancels=running, queue=False)  # its own button
    clear.click(
        lambda: ([], [], None), None, [chatbot, messages, box], cancels=running, queue=False
    )


def _add(page: Page, parts: list[dict[str, Any]], chunk: str | Image.Image) -> None:
    """Add a piece of text, or an image as a file of the page, to the parts of an answer."""
    if not isinstance(chunk, str):
        parts.append({"type": "image", "image": page.write(chunk, "answer")})
    elif parts and parts[-1]["type"] == "text":
        parts[-1] = {"type": "text", "text": parts[-1]["text"] + chunk}
    else:
        parts.append({"type": "text", "text": chunk})


def _question(message: dict[str, Any]) -> dict[str, Any]:
    """Convert an input of the viewer to a message: images first, then the question."""
    text = (message["text"] or "").strip()
    if not text:
        raise UserError("the question is empty; ask something.")
    images = [{"type": "image", "image": file} for file in message["files"]]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def _with_images(page: Page, messages: Messages) -> Messages:
    """Return the messages with decoded images in place of paths.

    Raises:
        UserError: as `Uploads.read`.
    """
    parts = [part for message in messages for part in _parts(message["content"])]
    paths = list(dict.fromkeys(part["image"] for part in parts if part["type"] == "image"))
    images = dict(zip(paths, page.uploads.read(paths, page.sizes.chat_input), strict=True))

    def decoded(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "image": images[part["image"]]} if part["type"] == "image" else part

    return [
        {**message, "content": [*map(decoded, _parts(message["content"]))]} for message in messages
    ]


def _bubbles(messages: Messages) -> list[dict[str, Any]]:
    """Convert messages to those of the chatbot component, with one for each content part."""
    return [
        {
            "role": message["role"],
            "content": {"path": part["image"]} if part["type"] == "image" else part["text"],
        }
        for message in messages
        for part in _parts(message["content"])
    ]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
