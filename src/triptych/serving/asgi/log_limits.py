"""Logging that clients cannot flood."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from typing import Any

log = logging.getLogger("asyncio")
INTERVAL = 10.0
"""Seconds in which each message is logged once."""
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class OncePerInterval(logging.Filter):
    """Passes the messages of each line of code once per INTERVAL, none of cancelled requests."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False  # a stream that the end of the server cut off
        now, line = time.monotonic(), (record.pathname, record.lineno)
        if now < self._next.get(line, 0):
            return False
        self._next[line] = now + INTERVAL
        return True


_once = OncePerInterval()


def limit_logs() -> None:
    """Limit the loggers to which connections can lead; those of failed requests have all."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_once)  # adding it again changes nothing


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Event loop exception handler: one sentence where a connection could not be accepted."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in NO_RESOURCES:
        log.warning("no connection can be accepted: %s; retrying every second", error.strerror)
    else:
        loop.default_exception_handler(context)
