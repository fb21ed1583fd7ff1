"""The page as a whole: its tabs, and the server that shows it until Ctrl-C."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import gradio as gr
from fastapi import FastAPI

from triptych import __version__
from triptych.serving.asgi.admission import Admission
from triptych.serving.asgi.host_check import AllowedHosts
from triptych.serving.asgi.middleware import RequestMiddleware
from triptych.serving.asgi.server import BACKLOG, BoundedServer, open_port
from triptych.serving.webui.chat_tab import chat_tab
from triptych.serving.webui.compare_tab import compare_tab
from triptych.serving.webui.edit_tab import edit_tab, reconstruct_tab
from triptych.serving.webui.generate_tab import generate_tab
from triptych.serving.webui.models import Models
from triptych.serving.webui.session import FOLDER, Page
from triptych.serving.webui.style import CSS, theme
from triptych.serving.webui.votes import Votes

MAX_UPLOAD_BYTES = 32 * 2**20
"""Bytes of a request."""
UPLOAD_SECONDS = 120
MAX_REQUESTS, MAX_REQUEST_BYTES = 64, 384 * 2**20
"""Requests with bodies in flight, and bytes of them."""
MAX_QUEUED_EVENTS = 64
"""Clicks that wait for their turn."""
KEPT_SECONDS = 24 * 3600  # files of the page, looked through every hour


def build(page: Page) -> gr.Blocks:
    """The page; loads its first model."""
    name = page.models.names[0]
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
    return blocks.queue(max_size=MAX_QUEUED_EVENTS, default_concurrency_limit=8)


class PageServer(BoundedServer):
    """A server of the page, which ends at the first SIGTERM or Ctrl-C."""

    def __init__(self, app: FastAPI, page: Page) -> None:
        super().__init__(app, timeout_graceful_shutdown=1)  # browsers keep streams open
        self.page = page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.page.closing.set()
        self.should_exit = True


def application(page: Page, hosts: AllowedHosts) -> FastAPI:
    """The page behind the same gate as the server's: bodies, Host and Origin are checked."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        RequestMiddleware,
        answered=lambda *_: None,
        admission=Admission(MAX_REQUESTS, MAX_REQUEST_BYTES),
        hosts=hosts,
        api_key=None,
        max_body=MAX_UPLOAD_BYTES,
        timeout=UPLOAD_SECONDS,
    )
    return gr.mount_gradio_app(
        app,
        build(page),
        "/",
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        theme=theme(),
        css=CSS,
    )


def serve(
    sources: Models,
    votes: Votes,
    prompts: Sequence[str],
    host: str,
    port: int,
    allowed: Sequence[str],
) -> None:
    """Show the page until Ctrl-C or SIGTERM."""
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads too: nothing stays behind
        page = Page(sources, votes, prompts, Path(folder))
        app = application(page, AllowedHosts(host, allowed))
        bound = open_port(host, port)
        bound.listen(BACKLOG)
        shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        with suppress(KeyboardInterrupt):  # before the server answers it, or passed on by uvicorn
            print(f"http://{shown_host}:{port}  votes: {votes.path}  Ctrl-C ends it", flush=True)
            try:
                PageServer(app, page).run(sockets=[bound])
            finally:
                page.uploads.close()
