"""`triptych serve`: OpenAI's HTTP interface to a model."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
from functools import partial
from pathlib import Path

from triptych.cli.arguments import add_address, command_parser, device_of, load_pipeline, parse
from triptych.utils.errors import UserError
from triptych.utils.limits import COUNT, POSITIVE, PROCESSES

EXAMPLES = """\
  triptych serve --port 8000
  triptych serve --from runs/tiny/stage2 --api-key SECRET --max-batch 32
  triptych serve --from blip3o_8b --quantize 4bit
  triptych serve --from blip3o_8b --replicas 8
  curl localhost:8000/v1/images/generations -H "Content-Type: application/json" \\
    -d '{"prompt": "a photo of a red circle"}'

Ctrl-C ends it. See docs/server.md."""


def serve(arguments: list[str]) -> None:
    """Serve a model over OpenAI's HTTP interface until Ctrl-C."""
    parser = command_parser("serve", "Serve a model over OpenAI's HTTP interface.", EXAMPLES)
    _add_access(parser)
    _add_limits(parser)
    parsed = parse(parser, arguments)
    try:
        from triptych.serving.asgi.server import open_port, run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("triptych"):
            raise
        raise UserError(
            f"the server needs {error.name}; install it with pip install 'triptych[serve]'."
        ) from error
    bound = open_port(parsed.host, parsed.port)
    if parsed.replicas > 1:
        _serve_replicas(parsed, bound)
        return
    try:
        app = _app(parsed)
    except KeyboardInterrupt:
        parser.exit(130, "triptych: interrupted while the model was loading.\n")
    run(app, bound, parsed.max_connections)


def _serve_replicas(parsed: argparse.Namespace, bound: socket.socket) -> None:
    """Serve --replicas, after all checks that need no weights.

    Raises:
        UserError: Ray is not installed, the model does not exist, or there are too few GPUs.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--replicas needs Ray Serve; install it with pip install 'triptych[replicas]'."
        )
    if parsed.max_connections is not None:
        raise UserError("--max-connections is of one process; leave it out with --replicas.")
    import torch

    from triptych.checkpoints import require_files
    from triptych.inference.loading import describe_model, find_source
    from triptych.serving.http.replicas import serve_replicas

    device = device_of(parsed)
    if device.index is not None:
        raise UserError(f"--device {device} is one GPU; give --device cuda with --replicas.")
    gpus = int(device.type == "cuda")
    if gpus and parsed.replicas > torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs, and each of --replicas {parsed.replicas} "
            "needs one; give fewer."
        )
    source = find_source(parsed.config or parsed.source, parsed.ema)
    flags = [*source.overrides, *parsed.overrides]
    require_files(describe_model(source.configs, flags, parsed.trust_class).weights)
    serve_replicas(
        partial(_app, parsed),
        bound,
        name=_name_of(parsed),
        replicas=parsed.replicas,
        gpus=gpus,
        max_requests=parsed.max_queue + parsed.max_batch,
        timeout=parsed.timeout,
    )


def _name_of(parsed: argparse.Namespace) -> str:
    """Name of the model for clients, who also see it in images, so that it holds no path."""
    source = (parsed.config or [parsed.source])[-1]
    return parsed.name or Path(source).name or "model"


def _app(parsed: argparse.Namespace):
    from triptych.serving.asgi.host_check import AllowedHosts
    from triptych.serving.http.app import Limits, create_app
    from triptych.serving.images.sizes import ImageSizes

    pipeline = load_pipeline(parsed)
    pipeline.name = _name_of(parsed)
    return create_app(
        pipeline,
        pipeline.name,
        ImageSizes.of(pipeline),
        limits=Limits(
            parsed.max_batch, parsed.max_queue, parsed.max_wait_ms, parsed.timeout,
            parsed.max_body_mb, parsed.max_memory_mb,
        ),
        api_key=parsed.api_key or os.environ.get("TRIPTYCH_API_KEY") or None,
        hosts=AllowedHosts(parsed.host, parsed.allow_host),
    )  # fmt: skip


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="name of the model for clients; default the last part of SOURCE",
    )
    add_address(parser, 8000)
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="key that clients must send; default $TRIPTYCH_API_KEY, which other users of the "
        "machine cannot see",
    )
    parser.add_argument(
        "--replicas",
        type=PROCESSES,
        default=1,
        metavar="N",
        help="number of copies of the model, each on a GPU of its own if there are GPUs, behind "
        "Ray Serve if more than one; default %(default)s",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-batch",
        type=COUNT,
        default=16,
        metavar="N",
        help="maximum number of images or chats in a batch; default %(default)s",
    )
    limits.add_argument(
        "--max-queue",
        type=COUNT,
        default=64,
        metavar="N",
        help="maximum number of queued images and chats, beyond which the status is 429; "
        "default %(default)s",
    )
    limits.add_argument(
        "--max-wait-ms",
        type=POSITIVE,
        default=10,
        metavar="MS",
        help="milliseconds to wait for more requests to batch, if idle; default %(default)s",
    )
    limits.add_argument(
        "--timeout",
        type=POSITIVE,
        default=120,
        metavar="S",
        help="time limit of a request, beyond which the status is 504; default %(default)s",
    )
    limits.add_argument(
        "--max-body-mb",
        type=POSITIVE,
        default=20,
        metavar="MB",
        help="maximum size of a request, beyond which the status is 413; default %(default)s",
    )
    limits.add_argument(
        "--max-memory-mb",
        type=POSITIVE,
        default=384,
        metavar="MB",
        help="maximum memory of all requests in flight, beyond which the status is 429; "
        "default %(default)s",
    )
    limits.add_argument(
        "--max-connections",
        type=COUNT,
        metavar="N",
        help="maximum number of connections; default half of the files that may be open, at "
        "most 512",
    )
