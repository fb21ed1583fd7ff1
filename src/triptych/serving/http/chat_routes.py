"""Route POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from triptych.inference.chat_messages import Message
from triptych.modules.text_generation import ChatOutput
from triptych.serving.asgi.api_errors import bad_request
from triptych.serving.http.context import Context
from triptych.serving.http.image_output import LARGE_SIDE, encode
from triptych.serving.http.jobs import ChatJob, ChatSettings
from triptych.serving.http.request_schemas import (
    ChatBody,
    ChatMessage,
    ImagePart,
    TextPart,
    settings_of,
)
from triptych.serving.http.server_sent_events import event_stream, sse_event
from triptych.serving.images.image_input import read_url

MAX_CHAT_IMAGES = 16
"""Maximum number of images in a conversation."""


def chat_routes(context: Context) -> APIRouter:
    """Create the router of chats."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **context.documented("ChatCompletion"))
    async def complete(request: Request, body: ChatBody) -> Response:
        """Generate the answer to a conversation, which may contain images."""
        context.check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise bad_request(
                "stream_options", "stream_options is for streams; set stream as well."
            )
        messages = await _read_messages(context, request, body.messages)
        settings = _settings(body)
        most = context.sizes.answer_images if body.max_images is None else body.max_images
        request.state.ticket.reserve(3 * most * context.sizes.generated**2)
        job = ChatJob(messages, body.seed, settings)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": context.name,
        }
        if body.stream:
            return await event_stream(request, _chunks(context, request, body, job=job, head=head))
        answer = await context.dispatcher.result(request, job)
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": await _content(context, answer),
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        usage = _count_tokens(context, answer)
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    return router


async def _content(context: Context, answer: ChatOutput) -> str | list[dict[str, Any]]:
    """Content of the message of an answer: its text, or its parts if there are images."""
    if all(isinstance(part, str) for part in answer.content):
        return answer.text
    return [await _part(context, part) for part in answer.content]


async def _part(context: Context, part: str | Image.Image) -> dict[str, Any]:
    """Part of a message, as clients send it back; an image is a data URL."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    limiter = context.large_encoders if part.width > LARGE_SIDE else context.encoders
    data = await to_thread.run_sync(encode, part, limiter=limiter)
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


async def _chunks(
    context: Context, request: Request, body: ChatBody, *, job: ChatJob, head: dict[str, Any]
) -> AsyncIterator[bytes]:
    """Yield server-sent events: role, text in chunks, finish reason, usage, [DONE].

    An image is a chunk whose content is a list of its part.
    """
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return data({"choices": [choice]} | ({"usage": None} if include_usage else {}))

    def data(content: dict[str, Any]) -> bytes:
        return sse_event({**head, "object": "chat.completion.chunk", **content})

    opened = False
    async with aclosing(context.dispatcher.events(request, job)) as events:
        async for kind, value in events:
            if not opened:
                yield chunk({"role": "assistant", "content": ""})
                opened = True
            if kind == "partial":
                text = isinstance(value, str)
                yield chunk({"content": value if text else [await _part(context, value)]})
            else:
                yield chunk({}, value.finish_reason)
                usage = _count_tokens(context, value)
                if include_usage:
                    yield data({"choices": [], "usage": usage})
    yield sse_event("[DONE]")


def _settings(body: ChatBody) -> ChatSettings:
    default = ChatSettings()
    return ChatSettings(
        body.max_completion_tokens or body.max_tokens or default.max_new_tokens,
        default.temperature if body.temperature is None else body.temperature,
        default.top_p if body.top_p is None else body.top_p,
        body.max_images,
        settings_of(body),
    )


async def _read_messages(
    context: Context, request: Request, messages: list[ChatMessage]
) -> list[Message]:
    """Convert messages to those of the pipeline, with decoded images."""
    converted = [
        Message(
            "system" if message.role == "developer" else message.role,
            [message.content] if isinstance(message.content, str) else [*message.content],
        )
        for message in messages
    ]
    if converted[-1].role != "user":
        raise bad_request("messages", "the last message is not the user's; add one.")
    places: dict[str, tuple[list[Any], int]] = {}
    files: list[bytes] = []
    for place, message in enumerate(converted):
        for number, part in enumerate(message.content):
            if isinstance(part, TextPart):
                message.content[number] = part.text
            elif isinstance(part, ImagePart):
                param = f"messages[{place}].content[{number}].image_url.url"
                if len(files) == MAX_CHAT_IMAGES:
                    raise bad_request(
                        param, f"there are more than {MAX_CHAT_IMAGES} images; send fewer."
                    )
                files.append(read_url(part.image_url.url, param))
                places[param] = message.content, number
    images = await context.read_images(request, files, context.sizes.chat_input, list(places))
    for (content, number), image in zip(places.values(), images, strict=True):
        content[number] = image
    return converted


def _count_tokens(context: Context, answer: Any) -> dict[str, int]:
    tokens = context.metrics.tokens
    tokens.labels("prompt").inc(answer.prompt_tokens)
    tokens.labels("completion").inc(answer.completion_tokens)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
