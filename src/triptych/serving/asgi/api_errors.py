"""API errors in OpenAI's format: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from triptych.inference.argument_names import MEANT
from triptych.inference.generation_config import SETTINGS

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
# Default messages by status.
MESSAGES = {
    404: "this address does not exist; see /openapi.json for all addresses.",
    405: "this address does not allow this method; see /openapi.json for its methods.",
}
CODES = {404: "not_found", 405: "method_not_allowed"}


class APIError(Exception):
    """An error response.

    Args:
        status: HTTP status code.
        message: one sentence for the author of the client, without internals of the server.
        code: error code for programs.
        param: invalid field of the request.
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
        """JSON body of the response."""
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
        """Reason phrase of the status, for responses outside of the framework."""
        return HTTPStatus(self.status).phrase.encode()

    def response(self) -> JSONResponse:
        """Create the response."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_request(param: str | None, message: str, code: str = "invalid_value") -> APIError:
    """Create a 400 error for an invalid field of the request."""
    return APIError(400, message, code, param)


def status_error(status: int, headers: Mapping[str, str] | None = None) -> APIError:
    """Create the error of a status of the framework, such as of unknown addresses and methods."""
    message = MESSAGES.get(status, "the request cannot be read.")
    return APIError(status, message, CODES.get(status, "bad_request"), headers=headers)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """Create a 400 error from the first validation error of pydantic."""
    first = errors[0]
    # <text> and the like are branches of unions, not keys of the request
    path = [key for key in first["loc"] if not str(key).startswith("<")]
    path = path[1:] if path[:1] == ["body"] else path
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    param = param.removeprefix(".") or None
    name = (param or "the body")[:80]
    match first["type"]:
        case "extra_forbidden":
            replacement = MEANT.get(name)
            hint = f"use {replacement}" if replacement in SETTINGS else "leave it out"
            return bad_request(name, f"{name} is unknown here; {hint}.", "unknown_parameter")
        case "missing":
            return bad_request(param, f"{name} is missing; give it.", "missing_required_parameter")
        case "json_invalid":
            return bad_request(None, "the body is not valid JSON.", "invalid_json")
        case "model_type" | "model_attributes_type":
            message = "should be a JSON object"
        case _:
            message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return bad_request(param, f"{name}: {message[:1].lower()}{message[1:].removesuffix('.')}.")
