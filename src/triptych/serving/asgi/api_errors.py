"""API errors in the format of OpenAI's clients: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from triptych.inference.argument_names import MEANT
from triptych.inference.generation_config import SETTINGS

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
# Default sentences by status, for errors without a sentence of our own.
SENTENCES = {
    404: "there is nothing at this address; see /openapi.json for what there is.",
    405: "this address does not take this method; see /openapi.json for what it takes.",
}
CODES = {404: "not_found", 405: "method_not_allowed"}


class APIError(Exception):
    """An error response.

    Args:
        status: status code of HTTP.
        message: one sentence for the author of the client; nothing internal to the server.
        code: short code for programs.
        param: field of the request that is wrong.
        headers: headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Body for JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def reason(self) -> bytes:
        """The status in words, for a connection without a framework."""
        return HTTPStatus(self.status).phrase.encode()

    def response(self) -> JSONResponse:
        """Response with this error."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_request(param: str | None, message: str, code: str = "invalid_value") -> APIError:
    """400: a field of the request has a wrong value."""
    return APIError(400, message, code, param)


def status_error(status: int, headers: Mapping[str, str] | None = None) -> APIError:
    """Error for a status of the framework itself: unknown addresses and methods."""
    sentence = SENTENCES.get(status, "the request cannot be read.")
    return APIError(status, sentence, CODES.get(status, "bad_request"), headers=headers)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """400 for the first of pydantic's errors: the field, and its allowed values."""
    first = errors[0]
    # <text> and the like are branches of our unions, not places in the request.
    place = [part for part in first["loc"] if not str(part).startswith("<")]
    place = place[1:] if place[:1] == ["body"] else place
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    param = param.removeprefix(".") or None
    name = (param or "the body")[:80]
    match first["type"]:
        case "extra_forbidden":
            meant = MEANT.get(name)
            hint = f"use {meant}" if meant in SETTINGS else "leave it out"
            return bad_request(name, f"{name} is unknown here; {hint}.", "unknown_parameter")
        case "missing":
            return bad_request(param, f"{name} is missing; give it.", "missing_required_parameter")
        case "json_invalid":
            return bad_request(None, "the body is not valid JSON.", "invalid_json")
        case "model_type" | "model_attributes_type":
            said = "should be a JSON object"
        case _:
            said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return bad_request(param, f"{name}: {said[:1].lower()}{said[1:].removesuffix('.')}.")
