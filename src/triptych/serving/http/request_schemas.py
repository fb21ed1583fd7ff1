"""The bodies of requests, as OpenAI's clients send them.

A field that this server cannot honour is refused where leaving it out would change the answer, and
accepted where it only tells of a preference (`quality`, `user`). A field that it does not know is
refused: a misspelling must not pass for a setting.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    create_model,
)

from triptych.inference.generation_config import SETTINGS, help_of, limit_of
from triptych.utils.limits import Choice, Interval, Range
from triptych.utils.text import clean_text

MAX_IMAGES = 10
"""Maximum number of images of one prompt, as in OpenAI's API."""
MAX_TOKENS = 4096
"""Maximum number of tokens of an answer."""
MAX_TEXT_LENGTH = 32_000
"""Maximum length in characters, as in OpenAI's API; most models have a lower limit."""
MAX_SEED = 2**63 - 1


def unsupported(*accepted: Any, instead: str = "leave it out") -> Any:
    """A type for fields of which this server can only honour these values, or null."""

    def check(value: Any) -> Any:
        if not any(value == each and type(value) is type(each) for each in accepted):
            raise ValueError(f"this value is not supported by this server; {instead}")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*accepted]})] | None


Text = Annotated[
    str,
    AfterValidator(clean_text),
    Field(max_length=MAX_TEXT_LENGTH),
]
Word = Annotated[str, AfterValidator(clean_text), Field(max_length=512)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
MAX_STEPS = 250
"""Of a sampler, in one request."""


class Body(BaseModel):
    """Base class of all bodies: JSON's own types, and no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def _type_of(limit: Any) -> Any:
    """The type of a field of `GenerationConfig` in a request."""
    match limit:
        case Choice():
            return Literal[limit.names]
        case Interval():
            time = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
            return Annotated[list[time], Field(min_length=2, max_length=2)]
        case Range(whole=True):
            return Annotated[int, Field(ge=limit.least, le=min(limit.most, MAX_STEPS))]
        case Range():
            return Annotated[float, Field(ge=limit.least, le=limit.most, allow_inf_nan=False)]
    return Text


SettingsBody = create_model(
    "SettingsBody",
    __base__=Body,
    **{
        name: (_type_of(limit_of(name)) | None, Field(None, description=help_of(name)))
        for name in SETTINGS
    },
)
"""All settings of `GenerationConfig`, beyond OpenAI's: clients send them by extra_body."""


class ImageBody(SettingsBody):
    """Base class of requests for images."""

    prompt: Text
    model: Word | None = Field(None, description="This server's only one by default.")
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Images; 1 by default.")
    size: str | None = Field(
        None,
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="auto is the model's own; another square is scaled.",
    )
    response_format: unsupported(
        "b64_json", instead="it keeps no images, so there is no URL: ask for b64_json"
    ) = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality in percent, of jpeg and webp."
    )
    background: unsupported("auto", "opaque", instead="its images are opaque") = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="When streaming.")
    # Preferences that change nothing here.
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        None
    )
    user: Word | None = None
    safety_identifier: Word | None = None
    # Beyond OpenAI's, too.
    seed: Seed | None = Field(None, description="Of the first image; each next has one more.")


class GenerationBody(ImageBody):
    """POST /v1/images/generations"""

    moderation: Literal["auto", "low"] | None = None  # a preference too
    style: Literal["vivid", "natural"] | None = None


class EditBody(ImageBody):
    """POST /v1/images/edits, beside its images."""

    input_fidelity: Literal["high", "low"] | None = None  # a preference too


class TextPart(Body):
    """A text in a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    """An image that is written into its URL."""

    url: str = Field(
        description="data:image/png;base64,... and nothing else: this server fetches nothing.",
        json_schema_extra={"pattern": "^data:"},
    )
    detail: Literal["auto", "low", "high"] | None = None  # every image is seen at one size


class ImagePart(Body):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _kind_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return "<image>" if kind == "image_url" else "<text>"


def _kind_of_content(content: Any) -> str:
    return "<parts>" if isinstance(content, list) else "<text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(_kind_of_part),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Part], Field(min_length=1, max_length=64), Tag("<parts>")],
    Discriminator(_kind_of_content),
]


class ChatMessage(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Word | None = None
    # Fields of a client's earlier answers, when they are sent back.
    refusal: None = None
    annotations: unsupported([]) = None
    audio: None = None
    function_call: None = None
    tool_calls: unsupported([]) = None


class StreamOptions(Body):
    """Options of a stream, beside the text."""

    include_usage: bool | None = None
    include_obfuscation: unsupported(False) = None


class TextFormat(Body):
    """The only format of answers."""

    type: unsupported("text", instead="answers are plain text")


class ChatBody(Body):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    model: Word | None = Field(None, description="This server's only one by default.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="256 by default."
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="The same, before.")
    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="0, the likeliest words, by default."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: unsupported(1, instead="it gives one answer") = None
    stop: unsupported([], instead="leave it out and cut the answer") = None
    frequency_penalty: unsupported(0, 0.0) = None
    presence_penalty: unsupported(0, 0.0) = None
    logit_bias: unsupported({}) = None
    logprobs: unsupported(False) = None
    top_logprobs: unsupported(0) = None
    response_format: TextFormat | None = None
    tools: unsupported([]) = None
    tool_choice: unsupported("none", "auto") = None
    parallel_tool_calls: bool | None = None
    modalities: unsupported(["text"]) = None
    store: unsupported(False) = None
    # Preferences that change nothing here.
    user: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    metadata: dict[Word, Word] | None = None
