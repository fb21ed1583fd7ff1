"""`triptych app`: web page to generate, chat, edit and compare."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from triptych.cli.arguments import add_address, command_parser, load_pipeline, parse

EXAMPLES = """\
  triptych app --from runs/tiny/stage2 --ema --port 7861
  triptych app --from runs/mine --other tiny --prompts prompts.txt --votes votes.jsonl
  triptych app --from blip3o_8b --quantize 4bit

Ctrl-C ends it. See docs/web_page.md."""


def app(arguments: list[str]) -> None:
    """Show the web page until Ctrl-C."""
    parser = command_parser(
        "app", "Show a web page to generate, chat, edit and compare images.", EXAMPLES
    )
    parser.add_argument(
        "--other",
        metavar="SOURCE",
        help="second model to compare with the first, named as by --from; default none",
    )
    add_address(parser, 7860)
    parser.add_argument(
        "--votes",
        type=Path,
        default=Path("votes.jsonl"),
        metavar="FILE",
        help="file to which votes are appended; default %(default)s",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="file of prompts to vote on, one a line; default none",
    )
    parsed = parse(parser, arguments)
    from triptych.serving.webui import launch  # imports torch
    from triptych.serving.webui.models import Models

    name = " ".join(parsed.config or [parsed.source])
    loaders = {f"{name} (EMA)" if parsed.ema else name: partial(load_pipeline, parsed)}
    if parsed.other is not None:
        loaders.setdefault(parsed.other, partial(load_pipeline, other_model(parsed)))
    launch.launch(
        Models(loaders),
        parsed.votes,
        parsed.prompts,
        host=parsed.host,
        port=parsed.port,
        allowed_hosts=parsed.allow_host,
    )


def other_model(parsed: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of the model --other, with the execution flags of the first model."""
    source = {"source": parsed.other, "config": None, "ema": False, "overrides": []}
    return argparse.Namespace(**{**vars(parsed), **source})
