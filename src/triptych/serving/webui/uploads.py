"""Decoding of uploaded images with the limits of the HTTP server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from triptych.serving.asgi.admission import Admission
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.images.image_decoder import ImageDecoder
from triptych.serving.images.image_input import LIMITS
from triptych.utils.documents import read_bytes
from triptych.utils.errors import UserError

MAX_BYTES = 384 * 2**20
"""Limit of the bytes of the decoded images of one event."""
TIMEOUT = 60.0
"""Time limit in seconds of all images of one event."""


class Uploads:
    """Reads uploaded files with the worker processes and limits of the HTTP server.

    The event handlers of the page run in threads, and the decoder in an event loop, which starts in
    its own thread with the first image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._decoder: ImageDecoder | None = None

    def read(self, paths: Sequence[str], size: int | None) -> list[Image.Image]:
        """Read image files as upright RGB.

        Args:
            size: see `read_request_image`.

        Raises:
            UserError: a file is not an image, damaged, or exceeds the limits of the server.
        """
        if not paths:
            return []
        files = [read_bytes(path, LIMITS.max_bytes) for path in paths]
        names = [Path(path).name for path in paths]
        reading = asyncio.run_coroutine_threadsafe(self._read(files, size, names), self._start())
        try:
            return reading.result()
        except APIError as error:
            raise UserError(error.message) from error
        except TimeoutError as error:
            raise UserError(
                f"{names[0]}: decoding took more than {TIMEOUT:g} seconds; give fewer or smaller "
                "images, or try again."
            ) from error

    def close(self) -> None:
        """Kill the worker processes."""
        if self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._decoder.close(), self._loop).result(TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.close()
        self._loop = None

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._decoder = asyncio.new_event_loop(), ImageDecoder()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="uploads", daemon=True
                )
                self._thread.start()
            return self._loop

    async def _read(
        self, files: list[bytes], size: int | None, names: list[str]
    ) -> list[Image.Image]:
        ticket = Admission(1, MAX_BYTES).admit(lambda: None)
        async with asyncio.timeout(TIMEOUT):
            return await self._decoder.read(files, size, names, ticket)
