"""`triptych eval understanding`: lmms-eval, told which model, and its results as a report."""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse, parser_of
from triptych.cli.eval.arguments import add_report, hand_out
from triptych.utils.documents import TEXT_BYTES, read_json
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, COUNT
from triptych.utils.png_metadata import shown_name

if TYPE_CHECKING:
    from triptych.evaluation.report import Report

EXAMPLES = """\
  triptych eval understanding --tasks mme,mmmu_val --from runs/mine --out understanding.json
  triptych eval understanding --tasks shapes_questions --include docs/lmms_eval --print

lmms-eval reads data sets from the hub, and asks some of its tasks' judges over the network.
Several GPUs: --print, and torchrun in place of python."""


def understanding(arguments: list[str]) -> None:
    """MME, MMMU and others, by lmms-eval where it is installed"""
    parser = parser_of("eval understanding", "Run tasks of lmms-eval on a model.", EXAMPLES)
    add_report(parser)
    parser.add_argument("--tasks", required=True, metavar="A,B", help="as lmms-eval calls them")
    parser.add_argument("--include", type=Path, metavar="DIR", help="of tasks of your own")
    parser.add_argument("--batch-size", type=BATCH, default=16, help="default %(default)s")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="questions of each task")
    parser.add_argument("--print", action="store_true", help="the command alone; run nothing")
    parsed, flags = parse(parser, arguments)
    if flags or parsed.config or parsed.low_memory or parsed.quantize:
        parser.error("lmms-eval is told --from, --ema, --device and --dtype alone")
    command = command_of(parsed)
    if parsed.print:
        print(shlex.join(["python", *command[1:]]))
        return
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed; pip install lmms-eval, in this environment.")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--output_path", folder], check=False)
        if done.returncode:
            raise UserError(f"lmms-eval failed (status {done.returncode}); it says why above.")
        report = read_results(Path(folder))
    report.settings["lmms_eval"] = version("lmms-eval")
    report.settings["model"] = {
        "source": shown_name(parsed.source),
        "ema": parsed.ema,
        "dtype": parsed.dtype,
    }
    hand_out(report, parsed)


def command_of(parsed: argparse.Namespace) -> list[str]:
    """What starts lmms-eval."""
    model = {"source": parsed.source, "device": parsed.device, "dtype": parsed.dtype}
    told = [f"{name}={value}" for name, value in model.items() if value]
    told += ["ema=True"] if parsed.ema else []
    told += [f"trust_class={'+'.join(parsed.trust_class)}"] if parsed.trust_class else []
    limit = ["--limit", str(parsed.limit)] if parsed.limit else []
    include = ["--include_path", str(parsed.include)] if parsed.include else []
    return [
        *(sys.executable, "-P", "-m", "lmms_eval", "--model", "triptych"),
        *("--model_args", ",".join(told), "--tasks", parsed.tasks),
        *("--batch_size", str(parsed.batch_size), *limit, *include),
    ]


def read_results(folder: Path) -> Report:
    """What lmms-eval wrote: a score for each metric that is a number, named TASK/METRIC.

    Raises:
        UserError: it wrote no results.
    """
    from triptych.evaluation.report import Report

    files = sorted(folder.rglob("*results.json"))
    if not files:
        raise UserError("lmms-eval wrote no results; it says why above.")
    read = read_json(files[-1], largest=TEXT_BYTES)
    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    numbers: dict[str, int] = {}
    for task, found in read["results"].items():
        for key, value in found.items():
            metric, _, way = key.partition(",")
            if not _is_number(value) or metric.endswith(("_stderr", "_clt", "_clustered")):
                continue
            name = f"{task}/{metric}"
            scores[name] = value
            error = found.get(f"{metric}_stderr,{way}")
            if _is_number(error):
                intervals[name] = (value - 1.96 * error, value + 1.96 * error)
            asked = read.get("n-samples", {}).get(task, {}).get("effective")
            if asked is not None:
                numbers[name] = asked
    return Report(
        "understanding",
        scores,
        "lmms-eval",
        intervals,
        numbers,
        settings={"tasks": read.get("configs", {}), "versions": read.get("versions", {})},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
