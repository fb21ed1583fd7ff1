"""`triptych eval compare`: reports in one table and one bar chart."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import command_parser, parse
from triptych.utils.disk_usage import output_file

EXAMPLES = """\
  triptych eval compare a.json b.json c.json --out compare.json --chart compare.png
  triptych eval compare runs/*/scores.json --only mean

All reports must be of one benchmark. The table is followed by the settings that differ."""


def compare(arguments: list[str]) -> None:
    """Compare reports of one benchmark in a table and a bar chart."""
    parser = command_parser(
        "eval compare", "Compare reports of one benchmark.", EXAMPLES, model=False
    )
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="JSON files of reports to compare"
    )
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="JSON file of the table to write; default none",
    )
    parser.add_argument(
        "--chart",
        type=output_file,
        default=Path("compare.png"),
        metavar="FILE",
        help="PNG file of the bar chart to write; default %(default)s",
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="text that names of shown scores contain; default all scores"
    )
    parsed = parse(parser, arguments)
    from triptych.evaluation.comparison import Comparison

    comparison = Comparison.read(parsed.reports, parsed.only)
    print(comparison.table())
    if parsed.out:
        comparison.save(parsed.out)
    comparison.draw(parsed.chart)
    print(f"\n{parsed.chart}")
