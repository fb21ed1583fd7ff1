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

from triptych.serving.asgi.api_errors import Problem, of_validation, wrong
from triptych.serving.http.context import Context
from triptych.serving.http.image_output import encode, scaled
from triptych.serving.http.jobs import PictureSettings, PictureWork
from triptych.serving.http.request_schemas import EditBody, GenerationBody, PictureBody
from triptych.serving.http.server_sent_events import event_stream, one_by_one

MOST_EDITED = 16
"""Pictures that one request for edits may ask for: pictures sent, times n."""
LARGE = 1024
"""Side in pixels of images above which encoding takes long."""
MOST_FIELDS = 64
"""Of a form, beside its files."""
SIDES = range(16, 2049)
"""In pixels, to which a picture is scaled if its `size` is asked for."""


class FormInMemory(MultiPartParser):
    """Writes no file to the disk: the whole body is in memory, and counted there, already."""

    spool_max_size = 0
    """Bytes of a file above which it would be written to the disk; 0 is never."""


def picture_routes(context: Context) -> APIRouter:
    """The routes of pictures."""
    router = APIRouter()

    @router.post("/v1/images/generations", **context.documented("ImageList"))
    async def generate(request: Request, body: GenerationBody) -> Response:
        """Pictures for a prompt."""
        context.check_model(body.model)
        _side(body)
        number = body.n or 1
        work = PictureWork(
            [body.prompt] * number,
            _seeds(body.seed, number),
            settings=_settings(
                body,
                negative=body.negative_prompt,
                guidance_interval=body.guidance_interval and tuple(body.guidance_interval),
            ),
            partial=_partial(body),
        )
        return await _answer(context, request, body, work, "image_generation")

    @router.post(
        "/v1/images/edits",
        openapi_extra={"requestBody": {"$ref": "#/components/requestBodies/Edit"}},
        **context.documented("ImageList"),
    )
    async def edit(request: Request) -> Response:
        """Pictures changed as a prompt says. Of several pictures each is changed by itself; the
        answer has `n` of the first, then `n` of the second."""
        fields, files = await _form(request)
        try:
            body = EditBody.model_validate(fields, strict=False)
        except ValidationError as error:
            raise of_validation(error.errors()) from error
        context.check_model(body.model)
        _side(body)
        if not files:
            raise wrong("image", "image is missing; send a picture.", "missing_required_parameter")
        number = body.n or 1
        if len(files) * number > MOST_EDITED:
            raise wrong(
                "n", f"{len(files)} pictures times {number}; ask for at most {MOST_EDITED} in all."
            )
        images = await context.read_images(
            request, files, context.sizes.edited, ["image"] * len(files)
        )
        images = [image for image in images for _ in range(number)]
        work = PictureWork(
            [body.prompt] * len(images),
            _seeds(body.seed, len(images)),
            images,
            _settings(body),
            _partial(body),
        )
        return await _answer(context, request, body, work, "image_edit")

    return router


async def _answer(
    context: Context, request: Request, body: PictureBody, work: PictureWork, event: str
) -> Response:
    shown = work.size * (1 + work.partial)
    request.state.ticket.reserve(3 * shown * context.sizes.made**2)
    if body.stream:
        return await event_stream(request, _events(context, request, body, work, event))
    pictures = await context.desk.result(request, work)
    parts = _image_list(context, pictures, body, work.seeds)
    return StreamingResponse(one_by_one(request, parts), media_type="application/json")


async def _image_list(
    context: Context, pictures: list[Image.Image], body: PictureBody, seeds: list[int]
) -> AsyncIterator[str]:
    """JSON in parts, an image each."""
    yield json.dumps({"created": int(time.time())}).removesuffix("}") + ', "data": ['
    for number, (picture, seed) in enumerate(zip(pictures, seeds, strict=True)):
        content, look = await _encoded(context, picture, body)
        yield ", " * (number > 0) + json.dumps({"b64_json": content, "seed": seed})
    yield "], " + json.dumps(look).removeprefix("{")


async def _encoded(
    context: Context, picture: Image.Image, body: PictureBody
) -> tuple[str, dict[str, str]]:
    """The file that is asked for, in base64, and the fields that describe it."""

    def make() -> tuple[str, dict[str, str]]:
        made = scaled(picture, _side(body))
        return encode(made, *_file(body)), _look(body, made)

    large = (_side(body) or picture.width) > LARGE
    limiter = context.large_encoders if large else context.encoders
    return await to_thread.run_sync(make, limiter=limiter)


async def _events(
    context: Context, request: Request, body: PictureBody, work: PictureWork, event: str
) -> AsyncIterator[str]:
    """Server-sent events: unfinished pictures as they come, then each finished one."""

    async def told(kind: str, picture: Image.Image, **more: Any) -> str:
        encoded, look = await _encoded(context, picture, body)
        content = {
            "type": f"{event}.{kind}",
            "b64_json": encoded,
            "created_at": int(time.time()),
            **look,
            **more,
        }
        return f"event: {event}.{kind}\ndata: {json.dumps(content)}\n\n"

    async with aclosing(context.desk.events(request, work)) as events:
        async for kind, value in events:
            if kind == "piece":
                yield await told(
                    "partial_image", value.picture,
                    partial_image_index=value.index, seed=work.seeds[value.number],
                )  # fmt: skip
            else:
                for picture, seed in zip(value, work.seeds, strict=True):
                    yield await told("completed", picture, seed=seed)


def _look(body: PictureBody, picture: Image.Image) -> dict[str, str]:
    return {
        "background": "opaque",
        "output_format": _file(body)[0],
        "quality": "auto",
        "size": f"{picture.width}x{picture.height}",
    }


def _file(body: PictureBody) -> tuple[str, int | None]:
    return body.output_format or "png", body.output_compression


def _partial(body: PictureBody) -> int:
    return (body.partial_images or 0) if body.stream else 0


def _settings(body: PictureBody, **more: Any) -> PictureSettings:
    return PictureSettings(
        steps=body.steps,
        guidance=body.guidance,
        decoder_steps=body.decoder_steps,
        decoder_guidance=body.decoder_guidance,
        sampler=body.sampler,
        decoder_sampler=body.decoder_sampler,
        **more,
    )


def _seeds(first: int | None, number: int) -> list[int]:
    if first is None:
        return [secrets.randbits(32) for _ in range(number)]
    return list(range(first, first + number))


def _side(body: PictureBody) -> int | None:
    """The side in pixels that is asked for; None is the model's own."""
    if body.size in (None, "auto"):
        return None
    width, height = (int(side) for side in body.size.split("x"))
    if width != height or width not in SIDES:
        raise wrong(
            "size",
            f"size: this model makes square pictures; ask for a square of {SIDES[0]} to "
            f"{SIDES[-1]} pixels a side, or for auto.",
        )
    return width


async def _form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    """Fields and pictures of a form, the latter as `image` or `image[]`, as the client sends them.

    Names of files are not looked at.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem(415, "send the request as multipart/form-data.", "unsupported_media_type")
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    parser = FormInMemory(
        request.headers, request.stream(), max_files=MOST_EDITED + 1, max_fields=MOST_FIELDS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise wrong(None, "the form cannot be read; send valid multipart/form-data.") from error
    for name, value in form.multi_items():
        if name in ("image", "image[]"):
            if not isinstance(value, UploadFile):
                raise wrong("image", "image is a text; send it as a file.")
            files.append(await value.read())
        elif name == "mask":
            raise wrong(
                "mask", "masks are not supported; say in the prompt what to change.",
                "unsupported_parameter",
            )  # fmt: skip
        elif name in fields:
            raise wrong(name, f"{name[:80]} is given twice; give it once.")
        elif not isinstance(value, str):
            raise wrong(name, f"{name[:80]} is a file; only image may be one.")
        else:
            fields[name] = value
    return _without_empty(fields), files


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields left empty are fields not given, but for the prompt, which must say something."""
    return {name: value for name, value in fields.items() if value or name == "prompt"}
