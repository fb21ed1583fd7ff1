"""The page as a whole: its tabs, and the server that shows it until Ctrl-C."""

from __future__ import annotations

import html
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gradio as gr

from triptych.contracts import UserError
from triptych.pipeline import UnifiedPipeline
from triptych.serving.web.chat_tab import chat_tab
from triptych.serving.web.compare_tab import compare_tab
from triptych.serving.web.edit_tab import edit_tab, reconstruct_tab
from triptych.serving.web.generate_tab import generate_tab
from triptych.serving.web.page import FOLDER, Page, Sources
from triptych.serving.web.style import CSS, theme
from triptych.serving.web.votes import Votes
from triptych.version import __version__

LARGEST_UPLOAD = "32mb"
KEPT_SECONDS = 24 * 3600  # files of the page, looked through every hour


def build(page: Page) -> gr.Blocks:
    """The page; loads its first model."""
    name = page.sources.names[0]
    with gr.Blocks(title="triptych", delete_cache=(3600, KEPT_SECONDS)) as blocks:
        gr.HTML(
            f"<div class='heading'><h1>triptych</h1><p>{html.escape(name)} · "
            f"version {__version__}</p></div>",
            padding=False,
        )
        with gr.Tab("Generate"):
            generate_tab(page)
        with gr.Tab("Chat"):
            chat_tab(page)
        with gr.Tab("Edit"):
            edit_tab(page)
        with gr.Tab("Compare"):
            compare_tab(page)
        if page.pipe.model.encoder.built:
            with gr.Tab("Reconstruct"):
                reconstruct_tab(page)
    return blocks.queue(default_concurrency_limit=8)


def serve(
    sources: Sources, votes: str | Path, prompts: Sequence[str], host: str, port: int
) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: the port is busy, votes cannot be kept, or the first model cannot be loaded; in
            this order.
    """
    require_free(host, port)
    kept = Votes(votes)
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads too: nothing stays behind
        page = Page(sources, kept, prompts, Path(folder))
        blocks = build(page)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD,
            theme=theme(),
            css=CSS,
        )
        shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        print(f"http://{shown_host}:{port}  votes: {kept.path}  Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            page.closing.set()
            blocks.close(verbose=False)


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
