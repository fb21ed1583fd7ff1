"""Decoding of images in worker processes, which are killed when no request waits for them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image

from triptych.serving.asgi.admission import Ticket
from triptych.serving.asgi.api_errors import APIError, bad_request

NUM_WORKERS = 2
MAX_CPU_SECONDS = 4.0
"""Limit of the CPU time of an image in seconds; the largest ones need a quarter of it."""
COMMAND = (sys.executable, "-P", "-m", "triptych.serving.images.decode_worker")


class WorkerCrashed(Exception):
    """The worker ended during a request."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the decoder ended with {status}")
        self.status = status


class ImageDecoder:
    """Pool of worker processes, with a queue of requests ordered by their number of pixels.

    Workers start when they are needed. A worker that does not respond, because of its image or
    because its caller was cancelled, is killed.
    """

    def __init__(self) -> None:
        self._free: list[asyncio.subprocess.Process | None] = [None] * NUM_WORKERS
        self._running: set[asyncio.subprocess.Process] = set()
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._numbers = itertools.count()

    async def read(
        self, files: Sequence[bytes], size: int | None, params: Sequence[str], ticket: Ticket
    ) -> list[Image.Image]:
        """Decode the images of a request with `read_request_image`, and reserve memory for them.

        Args:
            files: contents of the files.
            size: see `read_request_image`.
            params: field name of each file, for messages.
            ticket: ticket of the request.

        Raises:
            APIError: 400, as `read_request_image`, or the decoder took too long or crashed; 413 or
                429, there is no memory for the result.
        """
        if not files:
            return []
        pixels = 0
        try:
            response, _ = await self._request(0, {"measure": True}, files)
            pixels = response["pixels"]
        except WorkerCrashed:
            pass  # raised again below, for the file that causes it
        images = []
        for data, param in zip(files, params, strict=True):
            try:
                request = {"measure": False, "size": size, "param": param}
                response, content = await self._request(1 + pixels, request, [data], ticket)
            except WorkerCrashed as error:
                raise _decoding_error(error, param) from error
            if "error" in response:
                message, code = response["error"]
                raise bad_request(param, message, code)
            images.append(Image.frombytes("RGB", response["size"], content))
        return images

    async def close(self) -> None:
        """Kill the workers."""
        for worker in [*self._running]:
            _kill(worker)
            await worker.wait()

    async def _request(
        self,
        cost: int,
        request: dict[str, Any],
        files: Sequence[bytes],
        ticket: Ticket | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request to a worker. Waiting callers get one in the order of their cost.

        Raises:
            WorkerCrashed: the worker ended without a response.
            APIError: 413 or 429; there is no memory for the bytes of the response.
        """
        worker = await self._take(cost)
        completed = False
        try:
            if worker is None or worker.returncode is not None:
                worker = await asyncio.create_subprocess_exec(
                    *COMMAND,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C is handled by the server
                )
                self._running = {each for each in self._running if each.returncode is None}
                self._running.add(worker)
            request |= {"seconds": MAX_CPU_SECONDS, "lengths": [len(data) for data in files]}
            line = json.dumps(request)
            worker.stdin.write(line.encode() + b"\n")
            for data in files:
                worker.stdin.write(data)
            await worker.stdin.drain()
            response = json.loads(await worker.stdout.readuntil(b"\n"))
            if ticket is not None:
                ticket.reserve(response["length"])
            content = await worker.stdout.readexactly(response["length"])
            completed = True
            return response, content
        except (OSError, asyncio.IncompleteReadError) as error:
            raise WorkerCrashed(await worker.wait()) from error
        finally:
            if worker is not None and not completed:
                _kill(worker)
            self._give_back(worker if completed else None)

    async def _take(self, cost: int) -> asyncio.subprocess.Process | None:
        if self._free:
            return self._free.pop()
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # cancelled at the moment when its turn came
                self._give_back(turn.result())
            raise

    def _give_back(self, worker: asyncio.subprocess.Process | None) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(worker)
                return
        self._free.append(worker)


def _kill(worker: asyncio.subprocess.Process) -> None:
    """Kill a worker and close its pipes.

    With an open pipe `worker.wait()` returns only after all of its output has been read, which
    nobody does after a cancelled request.
    """
    worker._transport.close()


def _decoding_error(error: WorkerCrashed, param: str) -> APIError:
    if error.status == -signal.SIGPROF:
        return bad_request(
            param,
            f"{param}: the image takes more than {MAX_CPU_SECONDS:g} seconds to decode; save it in "
            "a simpler way.",
            "image_too_slow",
        )
    return bad_request(
        param, f"{param}: the image cannot be decoded; save it in another format.", "invalid_image"
    )
