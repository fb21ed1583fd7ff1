"""`triptych app`: the web page to generate, chat, edit and compare."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from triptych.cli.arguments import command_parser, load_pipeline, parse
from triptych.utils.limits import PORT

EXAMPLES = """\
  triptych app --from runs/tiny/stage2 --ema --port 7861
  triptych app --from runs/mine --other tiny --prompts prompts.txt --votes votes.jsonl
  triptych app --from blip3o_8b --quantize 4bit

Ctrl-C ends it. See docs/web_page.md."""


def app(arguments: list[str]) -> None:
    """Show a web page until Ctrl-C."""
    parser = command_parser(
        "app", "Show a web page to generate, chat, edit and compare images.", EXAMPLES
    )
    parser.add_argument(
        "--other",
        metavar="SOURCE",
        help="second model, to compare with the first, as --from; default none",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on, 0.0.0.0 being every one; default %(default)s",
    )
    parser.add_argument(
        "--port",
        type=PORT,
        default=7860,
        metavar="N",
        help="port to listen on, 0 being any free one; default %(default)s",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name in Host headers, * being every one; repeatable",
    )
    parser.add_argument(
        "--votes",
        type=Path,
        default=Path("votes.jsonl"),
        metavar="FILE",
        help="file that votes are added to; default %(default)s",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="file of prompts to vote on, one a line; default none",
    )
    parsed = parse(parser, arguments)
    from triptych.serving.webui.launch import show  # torch takes seconds to import: after parsing
    from triptych.serving.webui.models import Models

    named = " ".join(parsed.config or [parsed.source])
    loaders = {f"{named} (EMA)" if parsed.ema else named: partial(load_pipeline, parsed)}
    if parsed.other is not None:
        loaders.setdefault(parsed.other, partial(load_pipeline, other_model(parsed)))
    sources = Models(loaders)
    show(sources, parsed.votes, parsed.prompts, parsed.host, parsed.port, parsed.allow_host)


def other_model(parsed: argparse.Namespace) -> argparse.Namespace:
    """The flags of the model --other, which runs as the first one does."""
    own = {"source": parsed.other, "config": None, "ema": False, "overrides": []}
    return argparse.Namespace(**{**vars(parsed), **own})
