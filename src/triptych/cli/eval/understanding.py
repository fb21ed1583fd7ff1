"""`triptych eval understanding`: lmms-eval on a model, and a report of its results."""

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

from triptych.cli.arguments import add_batch_size, command_parser, model_of, parse
from triptych.cli.eval.arguments import add_report, write_report
from triptych.utils.documents import TEXT_BYTES, read_json
from triptych.utils.errors import UserError
from triptych.utils.limits import COUNT

if TYPE_CHECKING:
    from triptych.evaluation.report import Report

EXAMPLES = """\
  triptych eval understanding --tasks mme,mmmu_val --from runs/mine --out understanding.json
  triptych eval understanding --tasks shapes_questions --include docs/lmms_eval --print

lmms-eval reads data sets from the hub, and some of its tasks call judges over the network. For
several GPUs, use the command of --print with torchrun in place of python."""


def understanding(arguments: list[str]) -> None:
    """Run MME, MMMU and other tasks of lmms-eval, if it is installed."""
    parser = command_parser("eval understanding", "Run tasks of lmms-eval on a model.", EXAMPLES)
    add_report(parser)
    parser.add_argument(
        "--tasks",
        required=True,
        metavar="A,B",
        help="names in lmms-eval of the tasks to run; required",
    )
    parser.add_argument(
        "--include", type=Path, metavar="FOLDER", help="folder of user-defined tasks; default none"
    )
    add_batch_size(parser, "number of questions answered at once", 16)
    parser.add_argument(
        "--limit", type=COUNT, metavar="N", help="number of questions of each task; default all"
    )
    parser.add_argument(
        "--print",
        action="store_true",
        help="output of the command of lmms-eval, without running it",
    )
    parsed = parse(parser, arguments)
    if parsed.overrides:
        parser.error("lmms-eval takes no --model.x=y flags; write them in a file for --config")
    command = command_of(parsed)
    if parsed.print:
        print(shlex.join(["python", *command[1:]]))
        return
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed; pip install lmms-eval, in this environment.")
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run([*command, "--output_path", folder], check=False)
        if process.returncode:
            raise UserError(
                f"lmms-eval failed (status {process.returncode}); see its messages above."
            )
        report = read_results(Path(folder))
    report.settings["lmms_eval"] = version("lmms-eval")
    report.settings |= model_of(parsed)
    write_report(report, parsed)


def command_of(parsed: argparse.Namespace) -> list[str]:
    """Return the command line of lmms-eval."""
    arguments = {
        "source": "+".join(parsed.config or [parsed.source]),
        "device": parsed.device,
        "dtype": parsed.dtype,
        "ema": parsed.ema,
        "low_memory": parsed.low_memory,
        "quantize": parsed.quantize,
        "trust_class": "+".join(parsed.trust_class),
    }
    model = [f"{name}={value}" for name, value in arguments.items() if value]
    limit = ["--limit", str(parsed.limit)] if parsed.limit else []
    include = ["--include_path", str(parsed.include)] if parsed.include else []
    return [
        *(sys.executable, "-P", "-m", "lmms_eval", "--model", "triptych"),
        *("--model_args", ",".join(model), "--tasks", parsed.tasks),
        *("--batch_size", str(parsed.batch_size), *limit, *include),
    ]


def read_results(folder: Path) -> Report:
    """Read the results of lmms-eval: a score per numeric metric, named TASK/METRIC.

    Raises:
        UserError: there are no results.
    """
    from triptych.evaluation.report import Report

    files = sorted(folder.rglob("*results.json"))
    if not files:
        raise UserError("lmms-eval wrote no results; see its messages above.")
    read = read_json(files[-1], largest=TEXT_BYTES)
    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    numbers: dict[str, int] = {}
    for task, results in read["results"].items():
        for key, value in results.items():
            metric, _, filter_name = key.partition(",")
            if not _is_number(value) or metric.endswith(("_stderr", "_clt", "_clustered")):
                continue
            name = f"{task}/{metric}"
            scores[name] = value
            error = results.get(f"{metric}_stderr,{filter_name}")
            if _is_number(error):
                intervals[name] = (value - 1.96 * error, value + 1.96 * error)
            count = read.get("n-samples", {}).get(task, {}).get("effective")
            if count is not None:
                numbers[name] = count
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
