"""Decodes the images of requests in processes that are killed when nobody waits any more."""

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
from triptych.serving.asgi.api_errors import Problem, wrong

WORKERS = 2
SECONDS = 4.0
"""Seconds of CPU for an image; the largest ones take a quarter of it."""
COMMAND = (sys.executable, "-P", "-m", "triptych.serving.images.decode_worker")


class Crashed(Exception):
    """The process ended in the middle of a request."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the decoder ended with {status}")
        self.status = status


class Decoder:
    """Worker processes, and the requests that wait for one: those of the fewest pixels first.

    A worker is started when it is first needed. One that does not answer its request, because the
    image is broken or because the caller was cancelled, is killed.
    """

    def __init__(self) -> None:
        self._free: list[asyncio.subprocess.Process | None] = [None] * WORKERS
        self._running: set[asyncio.subprocess.Process] = set()
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._numbers = itertools.count()

    async def read(
        self, files: Sequence[bytes], size: int | None, params: Sequence[str], ticket: Ticket
    ) -> list[Image.Image]:
        """Decode the images of a request with `read_request_image`; memory for them is reserved.

        Args:
            params: field name of each file, for messages.

        Raises:
            Problem: 400, as `read_request_image`, or the decoder took too long or broke; 413 or
                429, there is no memory for the result.
        """
        if not files:
            return []
        pixels = 0
        try:
            answer, _ = await self._ask(0, {"measure": True}, files)
            pixels = answer["pixels"]
        except Crashed:
            pass  # the file that caused it is found below
        images = []
        for data, param in zip(files, params, strict=True):
            try:
                question = {"measure": False, "size": size, "param": param}
                answer, content = await self._ask(1 + pixels, question, [data], ticket)
            except Crashed as error:
                raise _unreadable(error, param) from error
            if "problem" in answer:
                message, code = answer["problem"]
                raise wrong(param, message, code)
            images.append(Image.frombytes("RGB", answer["size"], content))
        return images

    async def close(self) -> None:
        """Kill the workers."""
        for worker in [*self._running]:
            _kill(worker)
            await worker.wait()

    async def _ask(
        self,
        cost: int,
        question: dict[str, Any],
        files: Sequence[bytes],
        ticket: Ticket | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Answer of a worker. Among waiting callers, the one of the lowest cost gets one first.

        Raises:
            Crashed: no worker is left to answer.
            Problem: 413 or 429; there is no memory for the bytes of the answer.
        """
        worker = await self._take(cost)
        answered = False
        try:
            if worker is None or worker.returncode is not None:
                worker = await asyncio.create_subprocess_exec(
                    *COMMAND,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C is the server's to handle
                )
                self._running = {each for each in self._running if each.returncode is None}
                self._running.add(worker)
            question |= {"seconds": SECONDS, "lengths": [len(data) for data in files]}
            line = json.dumps(question)
            worker.stdin.write(line.encode() + b"\n")
            for data in files:
                worker.stdin.write(data)
            await worker.stdin.drain()
            answer = json.loads(await worker.stdout.readuntil(b"\n"))
            if ticket is not None:
                ticket.reserve(answer["length"])
            content = await worker.stdout.readexactly(answer["length"])
            answered = True
            return answer, content
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Crashed(await worker.wait()) from error
        finally:
            if worker is not None and not answered:
                _kill(worker)
            self._give_back(worker if answered else None)

    async def _take(self, cost: int) -> asyncio.subprocess.Process | None:
        if self._free:
            return self._free.pop()
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn came at the same moment
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


def _unreadable(error: Crashed, param: str) -> Problem:
    if error.status == -signal.SIGPROF:
        return wrong(
            param,
            f"{param}: the image takes more than {SECONDS:g} seconds to decode; save it in a "
            "simpler way.",
            "image_too_slow",
        )
    return wrong(
        param, f"{param}: the image cannot be decoded; save it in another way.", "invalid_image"
    )
