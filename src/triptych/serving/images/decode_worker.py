"""Worker process that decodes images, which can be killed if an image takes too long.

It reads requests from standard input, and writes each response to standard output: a line of JSON,
followed by the bytes whose length the line states. It imports neither torch nor the model.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from triptych.serving.asgi.api_errors import APIError
from triptych.serving.images.image_input import LIMITS, read_request_image
from triptych.utils.errors import ImageError
from triptych.utils.image_reader import read_header

MAX_MEMORY = 512 * 2**20
"""Limit of the private memory of the process in bytes."""


def main(requests: BinaryIO, responses: BinaryIO) -> None:
    """Serve requests until the pipe is closed."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := requests.readline():
        _serve(json.loads(line), requests, responses)


def _serve(request: dict[str, Any], requests: BinaryIO, responses: BinaryIO) -> None:
    files = [requests.read(length) for length in request["lengths"]]
    # the kernel ends the process after this time, wherever a decoder is
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    response, pixels = _measure(files) if request["measure"] else _read(files[0], request)
    signal.setitimer(signal.ITIMER_PROF, 0)
    responses.write(json.dumps(response | {"length": len(pixels)}).encode() + b"\n")
    responses.write(pixels)
    responses.flush()


def _measure(files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Count the pixels by the headers of files, 0 for broken ones."""
    pixels = 0
    for data in files:
        try:
            header = read_header(data, LIMITS)
        except ImageError:
            continue
        pixels += header.width * header.height
    return {"pixels": pixels}, b""


def _read(data: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        image = read_request_image(data, request["size"], request["param"])
    except APIError as error:
        return {"error": [error.message, error.code]}, b""
    return {"size": image.size}, image.tobytes()


if __name__ == "__main__":
    # decoders must not print between the responses
    responses = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.stdin.buffer, responses)
