"""The table of benchmarks."""

from __future__ import annotations

import sys
from pkgutil import resolve_name

# Benchmark -> (module:function, line of `triptych eval --help`), imported when it is called.
BENCHMARKS = {
    "shapes": (
        "shapes:shapes",
        "held-out captions, reconstructions, questions, edits of shapes",
    ),
    "geneval": (
        "text_to_image:geneval",
        "553 prompts: objects, their number, colour, position",
    ),
    "dpg": ("text_to_image:dpg", "1,065 long prompts with a grid of images each"),
    "wise": (
        "text_to_image:wise",
        "1,000 prompts, to be downloaded, about world knowledge",
    ),
    "fid": ("fid:fid", "FID and KID of a folder of images against another, and CLIP score"),
    "understanding": ("understanding:understanding", "MME, MMMU and other tasks of lmms-eval"),
    "compare": ("compare:compare", "reports of one benchmark in one table and one chart"),
}
EXAMPLES = """\
  triptych eval shapes --out scores.json
  triptych eval compare a.json b.json --chart compare.png"""


def overview() -> str:
    """Return the text of `triptych eval --help`."""
    lines = [f"  {name:14} {text}" for name, (_, text) in BENCHMARKS.items()]
    usage = "usage: triptych eval BENCHMARK [--help] ..."
    return "\n".join([usage, "", *lines, "", "examples:", EXAMPLES])


def evaluate(arguments: list[str]) -> None:
    """Run a benchmark."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(overview())
    elif name in BENCHMARKS:
        resolve_name(f"triptych.cli.eval.{BENCHMARKS[name][0]}")(arguments[1:])
    else:
        known = ", ".join(BENCHMARKS)
        print(
            f"triptych eval: {name!r} is not a benchmark; choose one of {known}.", file=sys.stderr
        )
        raise SystemExit(2)
