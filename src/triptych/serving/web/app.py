"""The page as a whole: its tabs, and the server that shows it until Ctrl-C."""

from __future__ import annotations

import html
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from triptych.serving.web.chat_tab import chat_tab
from triptych.serving.web.compare_tab import compare_tab
from triptych.serving.web.edit_tab import edit_tab, reconstruct_tab
from triptych.serving.web.generate_tab import generate_tab
from triptych.serving.web.page import FOLDER, Page
from triptych.serving.web.sources import Sources
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


def serve(sources: Sources, votes: Votes, prompts: Sequence[str], host: str, port: int) -> None:
    """Show the page until Ctrl-C or SIGTERM."""
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads too: nothing stays behind
        page = Page(sources, votes, prompts, Path(folder))
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
        print(f"http://{shown_host}:{port}  votes: {votes.path}  Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            page.closing.set()
            blocks.close(verbose=False)
