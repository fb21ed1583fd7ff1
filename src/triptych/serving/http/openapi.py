"""The OpenAPI document: generated from the routes, with additions."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from triptych import __version__
from triptych.serving.http import response_schemas
from triptych.serving.http.request_schemas import EditBody

IMAGES = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "minItems": 1,
    "description": "Image files; OpenAI's client sends several as image[].",
}


def describe(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    """Return the document, which is created at the first call."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = get_openapi(title="triptych", version=__version__, routes=app.routes)
    modes = [(model, "serialization") for model in response_schemas.ALL] + [
        (EditBody, "validation")
    ]
    schemas = models_json_schema(modes, ref_template="#/components/schemas/{model}")[1]["$defs"]
    form = schemas.pop("EditBody")
    form["properties"] |= {"image": IMAGES}
    form["required"] = [*form["required"], "image"]
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas)
    components["requestBodies"] = {
        "Edit": {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    }
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # validation errors are 400 here
            if needs_key and path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = document
    return document
