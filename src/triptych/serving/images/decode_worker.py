"""A process that decodes images, so that one that takes too long or breaks a decoder can be killed.

It reads requests from standard input and answers each on standard output: a line of JSON, followed
by as many bytes as the line says. It imports neither torch nor the model.
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

MEMORY = 512 * 2**20
"""Bytes of private memory that the process may have."""


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the pipe is closed."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := requests.readline():
        _answer(json.loads(line), requests, answers)


def _answer(request: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    files = [requests.read(length) for length in request["lengths"]]
    # The kernel ends the process when the time is over, wherever a decoder is then.
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    answer, pixels = _measured(files) if request["measure"] else _read(files[0], request)
    signal.setitimer(signal.ITIMER_PROF, 0)
    answers.write(json.dumps(answer | {"length": len(pixels)}).encode() + b"\n")
    answers.write(pixels)
    answers.flush()


def _measured(files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Number of pixels in the headers of files; a broken file counts none."""
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
    except APIError as problem:
        return {"problem": [problem.message, problem.code]}, b""
    return {"size": image.size}, image.tobytes()


if __name__ == "__main__":
    # Nothing that a decoder prints may come between the answers.
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.stdin.buffer, own)
