"""Bodies of answers, for the OpenAPI document.

Not `openai.types`, which allow every further field and leave most of them open: tests check answers
against this document, and a server needs no client.
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


class ImageInput(BaseModel):
    """An image, and the seed that makes it again."""

    b64_json: str
    seed: int


class ImageList(BaseModel):
    """The images of a request."""

    created: int
    data: list[ImageInput]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"]
    size: str


class Answer(BaseModel):
    """Message of the model."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """The answer, and why it ended."""

    index: int
    message: Answer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """A model that this server has."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that this server has: one."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Whether new work is taken."""

    status: Literal["ready", "draining"]
    queue: int


ALL = (ErrorBody, ImageList, ChatCompletion, Model, ModelList, Health)
