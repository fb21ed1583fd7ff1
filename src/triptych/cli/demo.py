"""`triptych demo`: page of what a model of the shapes world makes and answers, and its scores."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from triptych.cli.arguments import command_parser, load_pipeline, parse
from triptych.utils.disk_usage import announce, refuse_other_files

FILES = re.compile(r"index\.html|scores\.json|\..*")
"""Names of the files that the demo writes, and hidden files."""
BYTES = 1_000_000
"""Upper bound of the size of the demo."""
EXAMPLES = """\
  triptych demo --out out/demo
  triptych demo --from runs/tiny/stage2 --ema --out out/stage2

The scores are printed as JSON; the tiny preset takes less than a minute on one CPU core."""


def demo(arguments: list[str]) -> None:
    """Write a page that shows a shapes model."""
    started = time.time()
    parser = command_parser(
        "demo",
        "Write a page of what a model of the shapes world makes and answers.",
        EXAMPLES,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="FOLDER",
        help="folder to write; default %(default)s",
    )
    parsed = parse(parser, arguments)
    refuse_other_files(parsed.out, FILES, "--out")
    announce("the demo", parsed.out, BYTES)
    model = load_pipeline(parsed).model
    from triptych.evaluation.shapes.demo import make_demo

    scores = make_demo(model, parsed.out, started=started)
    print(json.dumps(scores))
    print(f"open {parsed.out / 'index.html'}")
