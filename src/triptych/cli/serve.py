"""`triptych serve`: its arguments, and what they start."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from triptych.inference.trusted_config import add_trust
from triptych.utils.errors import UserError

EXAMPLES = """\
examples:
  triptych serve --port 8000
  triptych serve --from runs/tiny/stage2 --api-key SECRET --max-batch 32
  curl localhost:8000/v1/images/generations -H "Content-Type: application/json" \\
    -d '{"prompt": "a photo of a red circle"}'

Any --model.x=y flag of `triptych fit` may follow. See docs/server.md."""


def serve(arguments: list[str]) -> None:
    """Serve a model over OpenAI's HTTP interface."""
    parser = _parser()
    parsed, overrides = parser.parse_known_args(arguments)
    unknown = [flag for flag in overrides if not flag.startswith("--model.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        from triptych.serving.asgi.server import open_port, run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("triptych"):
            raise
        raise UserError(
            f"the server needs {error.name}; install it with pip install 'triptych[serve]'."
        ) from error
    bound = open_port(parsed.host, parsed.port)
    try:
        app = _app(parsed, overrides)
    except KeyboardInterrupt:
        parser.exit(130, "triptych: interrupted while the model was loaded.\n")
    run(app, bound, parsed.max_connections)


def _app(parsed: argparse.Namespace, overrides: list[str]):
    from triptych.inference.pipeline import UnifiedPipeline
    from triptych.serving.asgi.host_check import Hosts
    from triptych.serving.http.app import Limits, create_app
    from triptych.serving.images.sizes import Sizes

    pipeline = UnifiedPipeline.from_pretrained(
        parsed.source,
        device=parsed.device,
        dtype=parsed.dtype,
        ema=parsed.ema,
        overrides=overrides,
        trust_class=parsed.trust_class,
    )
    # Clients see the name, in answers and in pictures: not where the files are.
    pipeline.name = parsed.name or Path(parsed.source).name or "model"
    return create_app(
        pipeline,
        pipeline.name,
        Sizes.of(pipeline),
        limits=Limits(
            parsed.max_batch, parsed.max_queue, parsed.max_wait_ms, parsed.timeout,
            parsed.max_body_mb, parsed.max_memory_mb,
        ),
        api_key=parsed.api_key or os.environ.get("TRIPTYCH_API_KEY") or None,
        hosts=Hosts(parsed.host, parsed.allow_host),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triptych serve",
        description=serve.__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        default="tiny",
        metavar="SOURCE",
        help="preset, model file, folder, checkpoint or weights; default %(default)s",
    )
    add("--ema", action="store_true", help="the moving average of a training checkpoint")
    add_trust(parser)
    add("--device", help="such as cuda or cpu; the first GPU if there is one")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights")
    add("--name", help="of the model, for clients; by default the last part of SOURCE")
    add("--host", default="127.0.0.1", help="default %(default)s; 0.0.0.0 is every address")
    add("--port", type=int, default=8000, help="default %(default)s; 0 is any free one")
    add(
        "--api-key",
        metavar="KEY",
        help="what clients must send; $TRIPTYCH_API_KEY, which other users do not see, by default",
    )
    add(
        "--max-batch",
        type=_positive(int),
        default=16,
        metavar="N",
        help="most pictures or chats worked on together; default %(default)s",
    )
    add(
        "--max-queue",
        type=_positive(int),
        default=64,
        metavar="N",
        help="most pictures and chats that wait, then 429; default %(default)s",
    )
    add(
        "--max-wait-ms",
        type=_positive(float),
        default=10,
        metavar="MS",
        help="a request's wait for company when the model is idle; default %(default)s",
    )
    add(
        "--timeout",
        type=_positive(float),
        default=120,
        metavar="S",
        help="seconds of a request, then 504; default %(default)s",
    )
    add("--max-body-mb", type=_positive(float), default=20, metavar="MB",
        help="size of a request, then 413; default %(default)s")  # fmt: skip
    add("--max-memory-mb", type=_positive(float), default=384, metavar="MB",
        help="memory of all requests in flight, then 429; default %(default)s")  # fmt: skip
    add("--max-connections", type=_positive(int), metavar="N",
        help="connections; default: half of the files that may be open, at most 512")  # fmt: skip
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="further name in Host headers, and of pages that may use the server; * is every one; "
        "may be repeated")  # fmt: skip
    return parser


def _positive(kind: type):
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e9:
            raise ValueError
        return value

    read.__name__ = f"positive {kind.__name__}"  # argparse's word for it
    return read
