"""Comparison of several reports of one benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.evaluation.charts import draw_bars
from triptych.evaluation.report import Report
from triptych.utils.atomic_write import write_text
from triptych.utils.errors import UserError


@dataclass
class Comparison:
    """Reports by name, and the names of the compared scores: those in all reports come first."""

    reports: dict[str, Report]
    scores: list[str]

    @classmethod
    def read(cls, paths: Sequence[Path], only: str | None = None) -> Comparison:
        """Read report files, named by the parts of their paths that differ.

        Args:
            paths: report files.
            only: substring of the names of compared scores; None takes all but those of chance.

        Raises:
            UserError: a file is not a report, the benchmarks differ, or no score matches `only`.
        """
        reports = dict(zip(short_names(paths), map(Report.load, paths), strict=True))
        kinds = sorted({report.benchmark for report in reports.values()})
        if len(kinds) > 1:
            raise UserError(
                f"these are reports of {' and '.join(kinds)}; compare those of one benchmark."
            )
        names = dict.fromkeys(name for report in reports.values() for name in report.scores)
        scores = [
            name
            for name in names
            if not name.startswith("chance/") and (only is None or only in name)
        ]
        if not scores:
            raise UserError(f"no report has a score whose name contains {only!r}.")
        scores.sort(key=lambda name: any(name not in each.scores for each in reports.values()))
        return cls(reports, scores)

    def differences(self) -> dict[str, list[Any]]:
        """Settings that differ between reports, one value per report."""
        plain = [
            {**_named(report.settings), "judged by": report.judged_by}
            for report in self.reports.values()
        ]
        names = dict.fromkeys(name for settings in plain for name in settings)
        values = {name: [settings.get(name) for settings in plain] for name in names}
        return {name: each for name, each in values.items() if any(v != each[0] for v in each)}

    def table(self) -> str:
        """One line per score, one column per report, with 95% intervals; then the differences."""
        rows = [["", *self.reports]]
        for name in self.scores:
            rows.append([name, *(_cell(report, name) for report in self.reports.values())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for name, values in self.differences().items():
            lines.append(f"{name}: {', '.join(_short(value) for value in values)}")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write the comparison as JSON."""
        reports = {
            name: {
                "scores": {each: report.scores.get(each) for each in self.scores},
                "intervals": {
                    each: report.intervals[each] for each in self.scores if each in report.intervals
                },
                "judged_by": report.judged_by,
            }
            for name, report in self.reports.items()
        }
        whole = {"reports": reports, "differences": self.differences()}
        write_text(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")

    def draw(self, path: Path) -> None:
        """Draw the comparison as a bar chart, a group of bars for each score."""
        series = {
            name: [(report.scores.get(each), report.intervals.get(each)) for each in self.scores]
            for name, report in self.reports.items()
        }
        draw_bars(path, self.scores, series)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Remove the common beginning and end of paths.

    Raises:
        UserError: a path is given twice.
    """
    parts = [path.with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("a report is given twice; name each once.")
    if len(parts) == 1:
        return [parts[0][-1]]
    shortest = min(map(len, parts))
    start = next((n for n in range(shortest) if len({p[n] for p in parts}) > 1), shortest)
    rest = [part[start:] for part in parts]
    shortest = min(map(len, rest))
    end = next((n for n in range(shortest) if len({r[-1 - n] for r in rest}) > 1), 0)
    return ["/".join(r[: len(r) - end]) or paths[n].stem for n, r in enumerate(rest)]


def _cell(report: Report, name: str) -> str:
    if name not in report.scores:
        return "-"
    score, interval, _ = report.score_cells(name)
    return f"{score} ({interval})" if interval else score


def _named(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _named(value, f"{before}{name}.") if nested else {f"{before}{name}": value}
    return flat


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
