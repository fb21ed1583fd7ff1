"""`triptych data votes`: pairs of images from the votes of the web page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.cli.arguments import command_parser, device_of, parse
from triptych.cli.data.printing import progress_bar
from triptych.utils.errors import UserError

EMA = " (EMA)"
"""Ending of the name under which the page shows a model by its averaged weights."""
EXAMPLES = """\
  triptych data votes votes.jsonl --out data/preferences
  make train-preferences DATA=data/preferences

The same command resumes where it stopped. See docs/rewards.md."""


def votes(arguments: list[str]) -> None:
    """Make the images of votes again, and pack those that were preferred with the others."""
    parser = command_parser(
        "data votes",
        "Pack pairs of images from the votes of `triptych app`: both images of each vote for one "
        "of them are made again, from prompt, seed and settings.",
        EXAMPLES,
        model=False,
    )
    parser.add_argument("votes", type=Path, metavar="VOTES", help="file of votes, JSON lines")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of the shards to write; required",
    )
    parser.add_argument(
        "--criterion",
        default="overall",
        metavar="NAME",
        help="criterion of the votes to take; default %(default)s",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="place of a model that has moved since it was voted on; repeatable; default none",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="device to compute on, such as cpu or cuda:1; default the first GPU, if there is one",
    )
    parsed = parse(parser, arguments)
    from triptych.serving.webui.pairs import pairs_of, write_pairs
    from triptych.serving.webui.votes import CRITERIA, Votes

    moved = dict(_renamed(text) for text in parsed.model)
    if parsed.criterion not in CRITERIA:
        raise UserError(
            f"votes have no criterion {parsed.criterion!r}; choose one of {', '.join(CRITERIA)}."
        )
    if not parsed.votes.is_file():
        raise UserError(f"there is no file of votes at {parsed.votes}; triptych app writes one.")
    found = Votes(parsed.votes).read()
    pairs = pairs_of(found, parsed.criterion)

    def load(name: str) -> Any:
        from triptych.inference.pipeline import UnifiedPipeline

        source = moved.get(name, name.removesuffix(EMA))
        ema = name.endswith(EMA)
        return UnifiedPipeline.from_pretrained(source, device=device_of(parsed), ema=ema)

    with progress_bar("images") as progress:
        write_pairs(pairs, parsed.out, load, lambda done: progress(done, 2 * len(pairs)))
    print(f"{len(pairs):,} pairs of {len(found):,} votes: {parsed.out}")


def _renamed(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    if not (name and source):
        raise UserError(f"--model is {text[:60]!r}; give NAME=SOURCE.")
    return name, source
