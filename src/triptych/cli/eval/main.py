"""The table of benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable

from triptych.cli.eval.compare import compare
from triptych.cli.eval.fid import fid
from triptych.cli.eval.shapes import shapes
from triptych.cli.eval.text_to_image import dpg, geneval, wise
from triptych.cli.eval.understanding import understanding

BENCHMARKS: dict[str, Callable[[list[str]], None]] = {
    "shapes": shapes,
    "geneval": geneval,
    "dpg": dpg,
    "wise": wise,
    "fid": fid,
    "understanding": understanding,
    "compare": compare,
}


def overview() -> str:
    """The text of `triptych eval --help`."""
    first = {name: each.__doc__.partition("\n")[0] for name, each in BENCHMARKS.items()}
    lines = [f"  {name:14} {line}" for name, line in first.items()]
    return "\n".join(["usage: triptych eval BENCHMARK [--help] ...", "", *lines])


def evaluate(arguments: list[str]) -> None:
    """Scores of a model: triptych eval shapes --out scores.json"""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(overview())
    elif name in BENCHMARKS:
        BENCHMARKS[name](arguments[1:])
    else:
        known = ", ".join(BENCHMARKS)
        print(f"triptych eval: {name!r} is no benchmark; choose one of {known}.", file=sys.stderr)
        raise SystemExit(2)
