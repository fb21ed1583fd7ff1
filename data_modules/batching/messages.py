"""Messages of a conversation with images in any of them, as a sample's metadata has them.

{"messages": [{"role": "user", "content": "draw a red circle"},
              {"role": "assistant", "content": [{"image": "0.jpg"}]},
              {"role": "user", "content": "how many shapes are there?"},
              {"role": "assistant", "content": "one"}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.data_modules.batching.clean_text import clean
from triptych.data_modules.sources.base import BadSample

MESSAGES = "messages"
"""Their key in the metadata."""
ROLES = ("system", "user", "assistant")
NO_LIST = "messages are not a list of role and content"


class ImageName(str):
    """Name of an image in the content of a message; any other `str` is text."""


@dataclass(frozen=True)
class SampleMessage:
    """One message of a sample."""

    role: str
    """One of ROLES."""
    content: tuple[str, ...]
    """Cleaned texts and `ImageName`s in order."""

    @property
    def images(self) -> tuple[ImageName, ...]:
        """Names of its images in order."""
        return tuple(part for part in self.content if isinstance(part, ImageName))

    def with_tokens(self, image_tokens: int) -> tuple[str, list[str | int]]:
        """Role and content as of `conversations.message_ids`."""
        return self.role, [image_tokens if isinstance(p, ImageName) else p for p in self.content]


def read_messages(metadata: Mapping, key: str, max_characters: int) -> list[SampleMessage]:
    """Read and clean the messages of the sample `key`.

    The content of a message is a text, or a list of texts and {"image": NAME}; parts with a "type",
    {"type": "text", "text": ...} and {"type": "image", "image": NAME}, are read too.

    Raises:
        BadSample: there are none, one is malformed, or a text is unusable.
    """
    messages = metadata.get(MESSAGES)
    if not messages:
        raise BadSample(key, f"no {MESSAGES!r} to learn from")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise BadSample(key, NO_LIST)
    return [_read(message, key, max_characters) for message in messages]


def _read(message: dict, key: str, max_characters: int) -> SampleMessage:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise BadSample(key, "role of a message is unknown", f"{role!r} of {', '.join(ROLES)}")
    parts = content if isinstance(content, list) else [content]
    return SampleMessage(role, tuple(_part(part, key, max_characters) for part in parts))


def _part(part: object, key: str, max_characters: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        part = part.get("text")
    if isinstance(part, str):
        return clean(part, key, "message", max_characters)
    name = part.get("image") if isinstance(part, dict) else None
    if isinstance(name, str) and name:
        return ImageName(name)
    raise BadSample(key, NO_LIST, f"a part is {part!r}"[:100])


def parts_with_images(messages: object) -> list[dict]:
    """Parts of the messages' contents that name an image, whatever else is malformed."""
    listed = messages if isinstance(messages, list) else []
    contents = [each.get("content") for each in listed if isinstance(each, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [each for each in parts if isinstance(each, dict) and isinstance(each.get("image"), str)]


def made_images(messages: object) -> list[str]:
    """Names of the images that the assistant makes, once each, whatever else is malformed."""
    listed = messages if isinstance(messages, list) else []
    answers = [m for m in listed if isinstance(m, dict) and m.get("role") == "assistant"]
    return list(dict.fromkeys(part["image"] for part in parts_with_images(answers)))
