"""The page with its tabs, and the server that shows it until Ctrl-C."""

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
"""Maximum size of a request in bytes."""
REQUEST_TIMEOUT = 120
"""Time limit of a request in seconds."""
MAX_REQUESTS, MAX_REQUEST_BYTES = 64, 384 * 2**20
"""Limits of the requests with a body in flight, and of their bytes."""
MAX_QUEUED_EVENTS = 64
"""Maximum number of queued events."""
FILE_AGE = 24 * 3600
"""Age in seconds at which files of the page are deleted."""


def build(page: Page) -> gr.Blocks:
    """Build the page, and load its first model."""
    name = page.models.names[0]
    with gr.Blocks(title="triptych", delete_cache=(3600, FILE_AGE)) as blocks:
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
        if page.pipe.model.encoder.is_built:
            with gr.Tab("Reconstruct"):
                reconstruct_tab(page)
    return blocks.queue(max_size=MAX_QUEUED_EVENTS, default_concurrency_limit=8)


class PageServer(BoundedServer):
    """Server of the page, which exits at the first SIGTERM or Ctrl-C."""

    def __init__(self, app: FastAPI, page: Page) -> None:
        super().__init__(app, timeout_graceful_shutdown=1)  # browsers keep connections open
        self.page = page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.page.closing.set()
        self.should_exit = True


def create_app(page: Page, hosts: AllowedHosts) -> FastAPI:
    """Create the application with the middleware of the HTTP server: bodies, Host and Origin."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        RequestMiddleware,
        answered=lambda *_: None,
        admission=Admission(MAX_REQUESTS, MAX_REQUEST_BYTES),
        hosts=hosts,
        api_key=None,
        max_body=MAX_UPLOAD_BYTES,
        timeout=REQUEST_TIMEOUT,
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
    models: Models,
    votes: Votes,
    prompts: Sequence[str],
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
) -> None:
    """Show the page until Ctrl-C or SIGTERM."""
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # for uploads too, so that nothing is left behind
        page = Page(models, votes, prompts, Path(folder))
        app = create_app(page, AllowedHosts(host, allowed_hosts))
        bound = open_port(host, port)
        bound.listen(BACKLOG)
        address = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        with suppress(
            KeyboardInterrupt
        ):  # before the server handles it, or raised again by uvicorn
            port = bound.getsockname()[1]  # chosen by the system if it was 0
            print(f"http://{address}:{port}  votes: {votes.path}  Ctrl-C ends it", flush=True)
            try:
                PageServer(app, page).run(sockets=[bound])
            finally:
                page.uploads.close()
