"""Checks before the page starts: port, votes, prompts, models.

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


def launch(
    models: Models,
    votes: Path,
    prompts: Path | None,
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Args:
        models: models of the page, of which the first is loaded at once.
        votes: file to which votes are appended.
        prompts: file of prompts to vote on.
        host: address to listen on.
        port: port to listen on.
        allowed_hosts: further names by which browsers may address the page.

    Raises:
        UserError: the port is in use, votes or prompts cannot be accessed, or the model does not
            exist.
    """
    require_free_port(host, port)
    vote_file, prompt_list = Votes(votes), read_prompts(prompts)
    models[models.names[0]]
    from triptych.serving.webui.app import serve

    serve(models, vote_file, prompt_list, host=host, port=port, allowed_hosts=allowed_hosts)


def require_free_port(host: str, port: int) -> None:
    """Check that the port can be bound, before anything is loaded.

    Raises:
        UserError: the port is in use, or the host is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"the page cannot be shown on port {port} of {host} ({error.strerror}); choose another "
            "with --port, or another --host."
        ) from error


def read_prompts(path: Path | None) -> list[str]:
    """Read the prompts of a file, see `prompt_files.read_entries`; return [] without a file.

    Raises:
        UserError: the file cannot be read, or has no prompt.
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
        raise UserError(f"{path} has no prompt; write one on each line.")
    return prompts
