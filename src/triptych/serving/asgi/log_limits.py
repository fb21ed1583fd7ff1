"""Rate limits of log messages that clients can cause."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from typing import Any

log = logging.getLogger("asyncio")
INTERVAL = 10.0
"""Seconds during which each message is logged once."""
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class OncePerInterval(logging.Filter):
    """Logging filter: one message per line of code and INTERVAL, and none of cancelled requests."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False  # a response that the shutdown of the server cut off
        now, line = time.monotonic(), (record.pathname, record.lineno)
        if now < self._next.get(line, 0):
            return False
        self._next[line] = now + INTERVAL
        return True


_once = OncePerInterval()


def limit_logs() -> None:
    """Limit the loggers of connections; failed requests are logged without limit."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_once)  # adding it again changes nothing


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of the event loop: one sentence if a connection cannot be accepted."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in NO_RESOURCES:
        log.warning("no connection can be accepted: %s; retrying every second", error.strerror)
    else:
        loop.default_exception_handler(context)
