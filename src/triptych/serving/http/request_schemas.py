"""Bodies of requests, as OpenAI's clients send them.

An unsupported field is refused if ignoring it would change the response, and accepted if it only
states a preference (`quality`, `user`). Unknown fields are refused, since a misspelling must not
pass for a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from triptych.inference.generation_config import (
    OF_EDITS,
    PROMPT_SETTINGS,
    SETTINGS,
    GenerationConfig,
    help_of,
    limit_of,
)
from triptych.serving.asgi.api_errors import bad_request
from triptych.utils.errors import UserError
from triptych.utils.limits import ANSWER_IMAGES, Interval, OneOf, Range
from triptych.utils.text import clean_text

MAX_IMAGES = 10
"""Maximum number of images of one prompt, as in OpenAI's API."""
MAX_TOKENS = 4096
"""Maximum number of tokens of an answer."""
MAX_TEXT_LENGTH = 32_000
"""Maximum length in characters, as in OpenAI's API; most models have a lower limit."""
MAX_SEED = 2**63 - 1


def unsupported(*accepted: Any, instead: str = "leave it out") -> Any:
    """Create the type of a field of which only these values, and null, are supported."""

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
"""Maximum number of sampling steps of one request."""


class Body(BaseModel):
    """Base class of all bodies: strict JSON types, and no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def _type_of(limit: Any) -> Any:
    """Return the type of a field of `GenerationConfig` in a request."""
    match limit:
        case OneOf():
            return Literal[limit.names]
        case Interval():
            time = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
            return Annotated[list[time], Field(min_length=2, max_length=2)]
        case Range(whole=True):
            return Annotated[int, Field(ge=limit.least, le=min(limit.most, MAX_STEPS))]
        case Range():
            return Annotated[float, Field(ge=limit.least, le=limit.most, allow_inf_nan=False)]
    return Text


def _settings_body(title: str, base: type, names: Sequence[str]) -> Any:
    """Create a body with these settings of `GenerationConfig`."""
    fields = {
        name: (_type_of(limit_of(name)) | None, Field(None, description=help_of(name)))
        for name in names
    }
    return create_model(title, __base__=base, **fields)


SettingsBody = _settings_body("SettingsBody", Body, PROMPT_SETTINGS)
"""Settings of `GenerationConfig`, which are not OpenAI's: clients send them by extra_body."""


class ImageBody(SettingsBody):
    """Base class of requests for images."""

    prompt: Text
    model: Word | None = Field(
        None, description="Model name; by default the only one of this server."
    )
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Number of images; 1 by default.")
    size: str | None = Field(
        None,
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="WIDTHxHEIGHT or auto; squares other than the model's are resized.",
    )
    response_format: unsupported(
        "b64_json", instead="it keeps no images and has no URLs: request b64_json"
    ) = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp in percent."
    )
    background: unsupported("auto", "opaque", instead="its images are opaque") = None
    stream: bool | None = None
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Number of partial images of a stream."
    )
    # Preferences without effect.
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        None
    )
    user: Word | None = None
    safety_identifier: Word | None = None
    # Not OpenAI's either.
    seed: Seed | None = Field(
        None, description="Seed of the first image, which increases by one for each further image."
    )


class GenerationBody(ImageBody):
    """Body of POST /v1/images/generations."""

    moderation: Literal["auto", "low"] | None = None  # a preference without effect
    style: Literal["vivid", "natural"] | None = None


class EditBody(_settings_body("EditSettingsBody", ImageBody, OF_EDITS)):
    """Fields of POST /v1/images/edits, besides its images."""

    input_fidelity: Literal["high", "low"] | None = None  # a preference without effect


class TextPart(Body):
    """Text part of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    """Image in a data URL."""

    url: str = Field(
        description="data:image/png;base64,... only: this server fetches no images.",
        json_schema_extra={"pattern": "^data:"},
    )
    detail: Literal["auto", "low", "high"] | None = None  # without effect: all images have one size


class ImagePart(Body):
    """Image part of a message."""

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
    """Message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Word | None = None
    # Fields of earlier answers that clients send back.
    refusal: None = None
    annotations: unsupported([]) = None
    audio: None = None
    function_call: None = None
    tool_calls: unsupported([]) = None


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: unsupported(False) = None


class TextFormat(Body):
    """Response format; only text is supported."""

    type: unsupported("text", instead="answers are plain text")


class ChatBody(_settings_body("ChatSettingsBody", Body, SETTINGS)):
    """Body of POST /v1/chat/completions; the settings are those of images in the answer."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    model: Word | None = Field(
        None, description="Model name; by default the only one of this server."
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Maximum number of tokens of the answer; 256 by default.",
    )
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Deprecated name of max_completion_tokens."
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="Softmax temperature; 0, greedy decoding, by default.",
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    max_images: int | None = Field(
        None,
        ge=0,
        le=ANSWER_IMAGES.most,
        description="Maximum number of images in the answer; by default the model's own.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: unsupported(1, instead="it returns one answer") = None
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
    # Preferences without effect.
    user: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    metadata: dict[Word, Word] | None = None


def settings_of(body: Body) -> GenerationConfig:
    """Settings of the images of a request; those that it has not are the model's own.

    Raises:
        APIError: 400, a value is out of range.
    """
    try:
        return GenerationConfig(**{name: getattr(body, name, None) for name in SETTINGS})
    except UserError as error:
        name = str(error).partition(" ")[0]
        raise bad_request(name if name in SETTINGS else None, str(error)) from error
