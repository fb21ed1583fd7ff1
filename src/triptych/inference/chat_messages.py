"""Parsing of chat messages in several formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from triptych.utils.errors import UserError
from triptych.utils.image_urls import EXAMPLE, is_url
from triptych.utils.images import ImageInput, open_image
from triptych.utils.text import clean_text, without_controls

ROLES = ("system", "user", "assistant")


@dataclass
class Message:
    """One message of a conversation."""

    role: str
    """One of ROLES."""
    content: list[str | Image.Image]
    """Texts and images in order."""


class ChatAnswer(str):
    """The text of an answer, with its images beside it."""

    content: list[str | Image.Image]
    """Texts and images in order, for the content of a message."""

    @classmethod
    def of(cls, content: list[str | Image.Image], text: str) -> ChatAnswer:
        """The answer of this content and text."""
        answer = cls(text)
        answer.content = content
        return answer

    @property
    def images(self) -> list[Image.Image]:
        """Its images in order."""
        return [part for part in self.content if not isinstance(part, str)]


Conversation = str | Sequence[Mapping[str, Any] | Message]
"""A text, or messages that end with one of the user."""


def read_messages(messages: Conversation) -> list[Message]:
    """Parse a conversation in the format of OpenAI or transformers.

    A single text is a message of the user. A message is {"role": ..., "content": ...}. The content
    is a text or a list of texts, images, {"type": "text", "text": ...}, {"type": "image", "image":
    image or path} (also with transformers' "path", "url" or "base64"), and OpenAI's {"type":
    "image_url", "image_url": {"url": data URL}}. OpenAI's role "developer" is "system".

    An answer of `UnifiedPipeline.chat` is the content of a message too, with its images.

    Texts are cleaned, see `clean_text`; the model's own answers may contain a NUL.

    Raises:
        UserError: a message is malformed, an image or a text cannot be used, or the last message is
            not the user's.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise UserError("a conversation is a text or a list of messages; give one of them.")
    read = [
        Message(m.role, [_part(part, n) for part in m.content])
        if isinstance(m, Message)
        else _message(m, n)
        for n, m in enumerate(messages, 1)
    ]
    read = [_cleaned(message, number) for number, message in enumerate(read, 1)]
    if not read or read[-1].role != "user":
        raise UserError("a conversation ends with a message of the user; add one.")
    return read


def _message(message: Mapping[str, Any], number: int) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f'message {number} is not {{"role": ..., "content": ...}}; correct it.')
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise UserError(f"message {number}: the role {role!r} is none of {', '.join(ROLES)}.")
    if isinstance(content, ChatAnswer):
        content = content.content
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise UserError(f"message {number}: its content is neither a text nor a list of parts.")
    return Message(role, [_part(part, number) for part in parts])


def _cleaned(message: Message, number: int) -> Message:
    def cleaned(part: str | Image.Image) -> str | Image.Image:
        if not isinstance(part, str):
            return part
        if message.role == "assistant":
            return without_controls(part)
        return clean_text(part, f"message {number}")

    return Message(message.role, [cleaned(part) for part in message.content])


def _part(part: Any, number: int) -> str | Image.Image:
    if isinstance(part, str):
        return part
    if isinstance(part, ImageInput):
        return open_image(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image":
        given = [part[key] for key in ("image", "path", "url") if key in part]
        given += [f"data:image/png;base64,{part['base64']}"] if "base64" in part else []
        if len(given) == 1 and isinstance(given[0], ImageInput):
            return open_image(given[0])
    if kind == "image_url":
        shown = part.get("image_url")
        url = shown.get("url") if isinstance(shown, Mapping) else shown
        if not isinstance(url, str) or not is_url(url):
            raise UserError(
                f"message {number}: its image_url is not a URL; give {EXAMPLE}, or a path as "
                '{"type": "image", "image": ...}.'
            )
        return open_image(url)
    raise UserError(
        f"message {number}: a part of its content is neither a text, nor an image, nor "
        '{"type": "text", "text": ...}, nor {"type": "image", "image": ...}, nor '
        '{"type": "image_url", "image_url": {"url": ...}}.'
    )
