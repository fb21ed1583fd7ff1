"""`triptych eval compare`: reports in one table and one picture."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import parse, parser_of
from triptych.utils.disk_usage import output_file

EXAMPLES = """\
  triptych eval compare a.json b.json c.json --out compare.json --picture compare.png
  triptych eval compare runs/*/scores.json --only mean

The reports are of one benchmark. Settings in which they differ stand below the table."""


def compare(arguments: list[str]) -> None:
    """Reports of one benchmark in one table and one picture"""
    parser = parser_of("eval compare", "Compare reports of one benchmark.", EXAMPLES, model=False)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="the table, as JSON")
    parser.add_argument(
        "--picture",
        type=output_file,
        default=Path("compare.png"),
        metavar="FILE",
        help="bars with their intervals; default %(default)s",
    )
    parser.add_argument("--only", metavar="TEXT", help="scores whose name contains it")
    parsed, _ = parse(parser, arguments)
    from triptych.evaluation.comparison import Comparison

    found = Comparison.read(parsed.reports, parsed.only)
    print(found.table())
    if parsed.out:
        found.save(parsed.out)
    found.draw(parsed.picture)
    print(f"\n{parsed.picture}")
