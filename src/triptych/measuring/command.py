"""The table of benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable

from triptych.measuring.compare import compare
from triptych.measuring.distance import fid
from triptych.measuring.prompted import dpg, geneval, wise
from triptych.measuring.shapes import shapes
from triptych.measuring.understanding import understanding

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
