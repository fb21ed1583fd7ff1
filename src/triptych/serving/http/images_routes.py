"""POST /v1/images/generations and /v1/images/edits."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from triptych.inference.generation_config import SETTINGS, GenerationConfig
from triptych.serving.asgi.api_errors import APIError, bad_request, validation_error
from triptych.serving.http.context import Context
from triptych.serving.http.image_output import encode, scaled
from triptych.serving.http.jobs import GenerationJob
from triptych.serving.http.request_schemas import EditBody, GenerationBody, ImageBody
from triptych.serving.http.server_sent_events import event_stream, flush_each, sse_event
from triptych.utils.errors import UserError

MAX_EDITED_IMAGES = 16
"""Images that one request for edits may ask for: images sent, times n."""
LARGE_SIDE = 1024
"""Side in pixels of images above which encoding takes long."""
MAX_FORM_FIELDS = 64
"""Maximum number of fields of a form, beside its files."""
SIDES = range(16, 2049)
"""Allowed sides in pixels for the requested `size` of an image."""


class FormInMemory(MultiPartParser):
    """Writes no file to the disk: the whole body is in memory, and counted there, already."""

    spool_max_size = 0
    """Bytes of a file above which it would be written to the disk; 0 is never."""


def image_routes(context: Context) -> APIRouter:
    """The routes of images."""
    router = APIRouter()

    @router.post("/v1/images/generations", **context.documented("ImageList"))
    async def generate(request: Request, body: GenerationBody) -> Response:
        """Images for a prompt."""
        context.check_model(body.model)
        _side(body)
        number = body.n or 1
        work = GenerationJob(
            [body.prompt] * number,
            _seeds(body.seed, number),
            settings=_settings(body),
            partial=_partial(body),
        )
        return await _answer(context, request, body, work, "image_generation")

    @router.post(
        "/v1/images/edits",
        openapi_extra={"requestBody": {"$ref": "#/components/requestBodies/Edit"}},
        **context.documented("ImageList"),
    )
    async def edit(request: Request) -> Response:
        """Edit images by a prompt. Several images are edited one by one; the
        answer has `n` of the first, then `n` of the second."""
        fields, files = await _form(request)
        if "guidance_interval" in fields:
            fields["guidance_interval"] = fields["guidance_interval"].split(",")
        try:
            body = EditBody.model_validate(fields, strict=False)
        except ValidationError as error:
            raise validation_error(error.errors()) from error
        context.check_model(body.model)
        _side(body)
        if not files:
            raise bad_request(
                "image", "image is missing; send an image.", "missing_required_parameter"
            )
        number = body.n or 1
        if len(files) * number > MAX_EDITED_IMAGES:
            raise bad_request(
                "n",
                f"{len(files)} images times {number}; ask for at most {MAX_EDITED_IMAGES} in all.",
            )
        images = await context.read_images(
            request, files, context.sizes.edit_input, ["image"] * len(files)
        )
        images = [image for image in images for _ in range(number)]
        work = GenerationJob(
            [body.prompt] * len(images),
            _seeds(body.seed, len(images)),
            images,
            _settings(body),
            _partial(body),
        )
        return await _answer(context, request, body, work, "image_edit")

    return router


async def _answer(
    context: Context, request: Request, body: ImageBody, work: GenerationJob, event: str
) -> Response:
    shown = work.size * (1 + work.partial)
    request.state.ticket.reserve(3 * shown * context.sizes.generated**2)
    if body.stream:
        return await event_stream(request, _events(context, request, body, work, event))
    images = await context.dispatcher.result(request, work)
    parts = _image_list(context, images, body, work.seeds)
    return StreamingResponse(flush_each(request, parts), media_type="application/json")


async def _image_list(
    context: Context, images: list[Image.Image], body: ImageBody, seeds: list[int]
) -> AsyncIterator[str]:
    """JSON in parts, an image each."""
    yield json.dumps({"created": int(time.time())}).removesuffix("}") + ', "data": ['
    for number, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        content, look = await _encoded(context, image, body)
        yield ", " * (number > 0) + json.dumps({"b64_json": content, "seed": seed})
    yield "], " + json.dumps(look).removeprefix("{")


async def _encoded(
    context: Context, image: Image.Image, body: ImageBody
) -> tuple[str, dict[str, str]]:
    """The requested file, in base64, and the fields that describe it."""

    def make() -> tuple[str, dict[str, str]]:
        made = scaled(image, _side(body))
        return encode(made, *_file(body)), _look(body, made)

    large = (_side(body) or image.width) > LARGE_SIDE
    limiter = context.large_encoders if large else context.encoders
    return await to_thread.run_sync(make, limiter=limiter)


async def _events(
    context: Context, request: Request, body: ImageBody, work: GenerationJob, event: str
) -> AsyncIterator[bytes]:
    """Server-sent events: unfinished images as they come, then each finished one."""

    async def told(kind: str, image: Image.Image, **more: Any) -> bytes:
        encoded, look = await _encoded(context, image, body)
        content = {
            "type": f"{event}.{kind}",
            "b64_json": encoded,
            "created_at": int(time.time()),
            **look,
            **more,
        }
        return sse_event(content, f"{event}.{kind}")

    async with aclosing(context.dispatcher.events(request, work)) as events:
        async for kind, value in events:
            if kind == "piece":
                yield await told(
                    "partial_image", value.image,
                    partial_image_index=value.index, seed=work.seeds[value.number],
                )  # fmt: skip
            else:
                for image, seed in zip(value, work.seeds, strict=True):
                    yield await told("completed", image, seed=seed)


def _look(body: ImageBody, image: Image.Image) -> dict[str, str]:
    return {
        "background": "opaque",
        "output_format": _file(body)[0],
        "quality": "auto",
        "size": f"{image.width}x{image.height}",
    }


def _file(body: ImageBody) -> tuple[str, int | None]:
    return body.output_format or "png", body.output_compression


def _partial(body: ImageBody) -> int:
    return (body.partial_images or 0) if body.stream else 0


def _settings(body: ImageBody) -> GenerationConfig:
    try:
        return GenerationConfig(**{name: getattr(body, name) for name in SETTINGS})
    except UserError as error:
        name = str(error).partition(" ")[0]
        raise bad_request(name if name in SETTINGS else None, str(error)) from error


def _seeds(first: int | None, number: int) -> list[int]:
    if first is None:
        return [secrets.randbits(32) for _ in range(number)]
    return list(range(first, first + number))


def _side(body: ImageBody) -> int | None:
    """The requested side in pixels; None is the model's own."""
    if body.size in (None, "auto"):
        return None
    width, height = (int(side) for side in body.size.split("x"))
    if width != height or width not in SIDES:
        raise bad_request(
            "size",
            f"size: this model makes square images; ask for a square of {SIDES[0]} to "
            f"{SIDES[-1]} pixels a side, or for auto.",
        )
    return width


async def _form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    """Fields and images of a form, the latter as `image` or `image[]`, as the client sends them.

    Names of files are not looked at.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise APIError(415, "send the request as multipart/form-data.", "unsupported_media_type")
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    parser = FormInMemory(
        request.headers,
        request.stream(),
        max_files=MAX_EDITED_IMAGES + 1,
        max_fields=MAX_FORM_FIELDS,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(
            None, "the form cannot be read; send valid multipart/form-data."
        ) from error
    for name, value in form.multi_items():
        if name in ("image", "image[]"):
            if not isinstance(value, UploadFile):
                raise bad_request("image", "image is a text; send it as a file.")
            files.append(await value.read())
        elif name == "mask":
            raise bad_request(
                "mask", "masks are not supported; say in the prompt what to change.",
                "unsupported_parameter",
            )  # fmt: skip
        elif name in fields:
            raise bad_request(name, f"{name[:80]} is given twice; give it once.")
        elif not isinstance(value, str):
            raise bad_request(name, f"{name[:80]} is a file; only image may be one.")
        else:
            fields[name] = value
    return _without_empty(fields), files


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields left empty are fields not given, but for the prompt, which must say something."""
    return {name: value for name, value in fields.items() if value or name == "prompt"}
