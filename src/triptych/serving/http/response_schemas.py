"""Bodies of responses, for the OpenAPI document.

They replace `openai.types`, which allow any further field and leave most of them optional: tests
check responses against this document, and the server needs no client library.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


class GeneratedImage(BaseModel):
    """Image with the seed that reproduces it, and the score of the best of several candidates."""

    b64_json: str
    seed: int
    score: float | None = None


class ImageList(BaseModel):
    """Images of a request."""

    created: int
    data: list[GeneratedImage]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"]
    size: str


class AnswerText(BaseModel):
    """Text between images of an answer."""

    type: Literal["text"]
    text: str


class AnswerImageUrl(BaseModel):
    """Image as a data URL."""

    url: str


class AnswerImage(BaseModel):
    """Image of an answer."""

    type: Literal["image_url"]
    image_url: AnswerImageUrl


class AssistantMessage(BaseModel):
    """Message of the model; its content is a list where it has images."""

    role: Literal["assistant"]
    content: str | list[AnswerText | AnswerImage]
    refusal: None


class ChatChoice(BaseModel):
    """Answer with its finish reason."""

    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """Answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(BaseModel):
    """Model of this server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Models of this server: one."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ready", "draining"]
    queue: int


ALL = (ErrorBody, ImageList, ChatCompletion, Model, ModelList, Health)
