"""Preparation of the page: a free port, a file of votes, prompts and models.

Arguments are validated before importing Gradio, which is slow.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from triptych.serving.webui.models import Models
from triptych.serving.webui.votes import Votes
from triptych.utils.documents import read_text
from triptych.utils.errors import UserError
from triptych.utils.prompt_files import read_entries
from triptych.utils.text import clean_text


def show(
    sources: Models,
    votes: Path,
    prompts: Path | None,
    host: str,
    port: int,
    allowed: Sequence[str] = (),
) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Args:
        sources: models; the first is loaded now.
        votes: file that votes are added to.
        prompts: file of prompts that viewers of pairs go through.
        host, port: address of the page.
        allowed: further hosts that browsers may address it by.

    Raises:
        UserError: the port is busy, votes cannot be stored, prompts cannot be read, or the
            model does not exist.
    """
    require_free_port(host, port)
    kept, listed = Votes(votes), read_prompts(prompts)
    sources[sources.names[0]]
    from triptych.serving.webui.app import serve

    serve(sources, kept, listed, host, port, allowed)


def require_free_port(host: str, port: int) -> None:
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
    """The prompts of a file, see `prompt_files.read_entries`; none without a file.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    if path is None:
        return []
    prompts = []
    for place, entry in read_entries(str(path), read_text(path)):
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f'{place} has no text "prompt"; write one.')
        prompts.append(clean_text(prompt, f"{place}: the prompt"))
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one a line.")
    return prompts
