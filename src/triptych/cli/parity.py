"""`triptych parity`: comparison with recorded values of published code."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import command_parser, parse
from triptych.utils.errors import UserError

EXAMPLES = """\
  triptych parity tests/data/parity

The status is 1 if a quantity differs, and 2 if a case cannot be run."""


def parity(arguments: list[str]) -> None:
    """Compare recorded values of published code with those of triptych."""
    parser = command_parser(
        "parity",
        "Compare recorded values of published code with those of triptych.",
        EXAMPLES,
        model=False,
    )
    parser.add_argument(
        "cases", type=Path, metavar="FOLDER", help="folder of cases, each in a folder of its own"
    )
    parsed = parse(parser, arguments)
    from triptych.evaluation.parity import run_cases

    try:
        report = run_cases(parsed.cases)
    except UserError as error:
        parser.exit(2, f"triptych parity: {error}\n")  # 1 means that a quantity differs
    print(report.summary())
    if report.failed:
        parser.exit(1)
    if report.left_out:
        parser.exit(2, f"triptych parity: {'; '.join(report.left_out.values())}.\n")
