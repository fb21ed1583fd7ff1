"""What is needed before there is a page: a free port, a file of votes, prompts and models.

Gradio takes seconds to import, so what is wrong is said before.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from triptych.contracts import UserError
from triptych.pipeline import UnifiedPipeline
from triptych.serving.web.votes import Votes


def show(sources: Sources, votes: Path, prompts: Path | None, host: str, port: int) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Args:
        sources: the first is loaded now.
        votes: file that votes are added to.
        prompts: file of prompts that viewers of pairs go through.
        host, port: where browsers find it.

    Raises:
        UserError: the port is busy, votes cannot be kept, prompts cannot be read, or there is no
            such model.
    """
    require_free(host, port)
    kept, listed = Votes(votes), read_prompts(prompts)
    sources[sources.names[0]]
    from triptych.serving.web.app import serve

    serve(sources, kept, listed, host, port)


class Sources:
    """Models by the names that viewers may read; each is loaded when it is first asked for."""

    def __init__(self, loaders: Mapping[str, Callable[[], UnifiedPipeline]]) -> None:
        self._loaders, self._loaded = dict(loaders), {}
        self._turn = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The first is the one that all tabs use."""
        return list(self._loaders)

    def __getitem__(self, name: str) -> UnifiedPipeline:
        with self._turn:
            if name not in self._loaded:
                self._loaded[name] = self._loaders[name]()
            return self._loaded[name]


def find_sources(source: str, other: str | None, ema: bool, overrides: Sequence[str]) -> Sources:
    """The model to show, and another to compare with it, by the names that viewers read.

    `ema` and `overrides` are for the first alone; see `UnifiedPipeline.from_pretrained`.
    """
    load = UnifiedPipeline.from_pretrained
    loaders = {
        f"{source} (EMA)" if ema else source: partial(load, source, ema=ema, overrides=overrides)
    }
    if other is not None:
        loaders.setdefault(other, partial(load, other))
    return Sources(loaders)


def require_free(host: str, port: int) -> None:
    """Ask for the port before anything is loaded.

    Raises:
        UserError: another program has it, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise UserError(
            f"the page cannot be shown on port {port} of {host} ({error.strerror}); choose another "
            "with --port, or another --host."
        ) from error


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file of prompts, without empty ones; none without a file.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts in {path} cannot be read ({error}).") from error
    if not any(lines):
        raise UserError(f"{path} holds no prompt; write one a line.")
    return [line for line in lines if line]
