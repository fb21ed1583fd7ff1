"""Routes POST /v1/images/generations and /v1/images/edits."""

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

from triptych.serving.asgi.api_errors import APIError, bad_request, validation_error
from triptych.serving.http.context import Context
from triptych.serving.http.image_output import LARGE_SIDE, encode, scaled
from triptych.serving.http.jobs import GenerationJob
from triptych.serving.http.request_schemas import EditBody, GenerationBody, ImageBody, settings_of
from triptych.serving.http.server_sent_events import event_stream, flush_each, sse_event
from triptych.utils.png_metadata import metadata_of

MAX_CANDIDATES = 64
"""Maximum number of candidates of one request: n times num_candidates."""
MAX_EDITED_IMAGES = 16
"""Maximum number of images of one edit request: number of sent images times n."""
MAX_FORM_FIELDS = 64
"""Maximum number of fields of a form, besides its files."""
SIDES = range(16, 2049)
"""Allowed sides in pixels for the requested `size` of an image."""


class FormInMemory(MultiPartParser):
    """Form parser that writes no files to disk: the whole body is in memory, and counted there."""

    spool_max_size = 0
    """Size in bytes above which a file is written to disk; 0 is never."""


def image_routes(context: Context) -> APIRouter:
    """Create the router of images."""
    router = APIRouter()

    @router.post("/v1/images/generations", **context.documented("ImageList"))
    async def generate(request: Request, body: GenerationBody) -> Response:
        """Generate images of a prompt."""
        context.check_model(body.model)
        _side(body)
        number = body.n or 1
        if number * (body.num_candidates or 1) > MAX_CANDIDATES:
            raise bad_request(
                "num_candidates",
                f"{number} images times {body.num_candidates} candidates; request at most "
                f"{MAX_CANDIDATES} in all.",
            )
        job = GenerationJob(
            [body.prompt] * number,
            _seeds(body.seed, number),
            settings=settings_of(body),
            num_partial=_num_partial(body),
        )
        return await _respond(context, request, body, job=job, event="image_generation")

    @router.post(
        "/v1/images/edits",
        openapi_extra={"requestBody": {"$ref": "#/components/requestBodies/Edit"}},
        **context.documented("ImageList"),
    )
    async def edit(request: Request) -> Response:
        """Edit images by a prompt. Several images are edited separately; the
        response has `n` of the first, then `n` of the second."""
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
                f"{len(files)} images times {number}; request at most {MAX_EDITED_IMAGES} in all.",
            )
        images = await context.read_images(
            request, files, context.sizes.edit_input, ["image"] * len(files)
        )
        images = [image for image in images for _ in range(number)]
        job = GenerationJob(
            [body.prompt] * len(images),
            _seeds(body.seed, len(images)),
            images,
            settings_of(body),
            _num_partial(body),
        )
        return await _respond(context, request, body, job=job, event="image_edit")

    return router


async def _respond(
    context: Context, request: Request, body: ImageBody, *, job: GenerationJob, event: str
) -> Response:
    count = job.num_images * (1 + job.num_partial)
    request.state.ticket.reserve(3 * count * context.sizes.generated**2)
    if body.stream:
        return await event_stream(request, _events(context, request, body, job=job, event=event))
    images = await context.dispatcher.result(request, job)
    chunks = _image_list(context, images, body, job.seeds)
    return StreamingResponse(flush_each(request, chunks), media_type="application/json")


async def _image_list(
    context: Context, images: list[Image.Image], body: ImageBody, seeds: list[int]
) -> AsyncIterator[str]:
    """Yield JSON in chunks, one for each image."""
    yield json.dumps({"created": int(time.time())}).removesuffix("}") + ', "data": ['
    for number, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        content, description = await _encode(context, image, body)
        facts = {"b64_json": content, **_origin(image, seed)}
        yield ", " * (number > 0) + json.dumps(facts)
    yield "], " + json.dumps(description).removeprefix("{")


async def _encode(
    context: Context, image: Image.Image, body: ImageBody
) -> tuple[str, dict[str, str]]:
    """Encode an image as requested, in base64, and return it with the fields that describe it."""

    def work() -> tuple[str, dict[str, str]]:
        resized = scaled(image, _side(body))
        return encode(resized, *_format(body)), _describe(body, resized)

    large = (_side(body) or image.width) > LARGE_SIDE
    limiter = context.large_encoders if large else context.encoders
    return await to_thread.run_sync(work, limiter=limiter)


async def _events(
    context: Context, request: Request, body: ImageBody, *, job: GenerationJob, event: str
) -> AsyncIterator[bytes]:
    """Yield server-sent events: partial images while they are generated, then the finished ones."""

    async def image_event(kind: str, image: Image.Image, **fields: Any) -> bytes:
        encoded, description = await _encode(context, image, body)
        content = {
            "type": f"{event}.{kind}",
            "b64_json": encoded,
            "created_at": int(time.time()),
            **description,
            **fields,
        }
        return sse_event(content, f"{event}.{kind}")

    async with aclosing(context.dispatcher.events(request, job)) as events:
        async for kind, value in events:
            if kind == "partial":
                yield await image_event(
                    "partial_image", value.image,
                    partial_image_index=value.index, seed=job.seeds[value.number],
                )  # fmt: skip
            else:
                for image, seed in zip(value, job.seeds, strict=True):
                    yield await image_event("completed", image, **_origin(image, seed))


def _origin(image: Image.Image, seed: int) -> dict[str, Any]:
    """Seed of an image; of the best of several candidates its own one, and its score."""
    metadata = metadata_of(image)
    if "score" not in metadata:
        return {"seed": seed}
    return {"seed": metadata["seed"], "score": metadata["score"]}


def _describe(body: ImageBody, image: Image.Image) -> dict[str, str]:
    return {
        "background": "opaque",
        "output_format": _format(body)[0],
        "quality": "auto",
        "size": f"{image.width}x{image.height}",
    }


def _format(body: ImageBody) -> tuple[str, int | None]:
    return body.output_format or "png", body.output_compression


def _num_partial(body: ImageBody) -> int:
    return (body.partial_images or 0) if body.stream else 0


def _seeds(first: int | None, number: int) -> list[int]:
    if first is None:
        return [secrets.randbits(32) for _ in range(number)]
    return list(range(first, first + number))


def _side(body: ImageBody) -> int | None:
    """Return the requested side in pixels; None is that of the model."""
    if body.size in (None, "auto"):
        return None
    width, height = (int(side) for side in body.size.split("x"))
    if width != height or width not in SIDES:
        raise bad_request(
            "size",
            f"size: this model generates square images; request a square of {SIDES[0]} to "
            f"{SIDES[-1]} pixels a side, or auto.",
        )
    return width


async def _form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    """Read the fields and the images of a form, which are named `image` or `image[]`.

    File names are ignored.
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
                "mask", "masks are not supported; describe the change in the prompt.",
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
    """Remove empty fields, which count as not given, except the prompt, which is required."""
    return {name: value for name, value in fields.items() if value or name == "prompt"}
