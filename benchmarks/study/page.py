"""The study's report: one HTML file that needs neither network nor script.

Every sentence about a result is made from the numbers of `reading.read`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from study.drawings import bars, curves
from study.reading import MEASURES
from study.runs import SHIPPED
from triptych.evaluation.html_page import render_page

SETTINGS = ("command", "plan", "machine", "versions")
Cells = tuple[str, ...]
"""A row of a table."""


def render(results: Mapping, runs: Path) -> str:
    """Render the whole page; sheets of samples are read from the folder of the runs."""
    plan = results["plan"]
    about = (
        f"{len(results['runs'])} runs on the tiny preset: {plan['steps']} steps of clip_flow, and "
        f"of the other arms what costs the same FLOPs; seeds {list(plan['seeds'])}; each scored "
        f"with {plan['images']} held-out captions."
    )
    return render_page(
        "page.html",
        Path(__file__).parent,
        title="Which representation, objective and order of training",
        about=about,
        missing=results["missing"],
        findings=[finding_cells(finding) for finding in results["findings"]],
        curves=_curves(results),
        charts={title: _bars(results, measure) for measure, title in MEASURES.items()},
        shipped=SHIPPED,
        understanding=_understanding(results),
        cost=_cost(results),
        each=plan["each"],
        sheets={name: (runs / name / "sheet.png").read_bytes() for name in _sheets(results)},
        settings=json.dumps({name: results[name] for name in SETTINGS}, indent=2),
    )


def sentence(finding: Mapping) -> str:
    """Describe the measured difference of a finding."""
    measure, difference = MEASURES[finding["measure"]], finding["difference"]
    second = "before training" if finding["second"] == SHIPPED else finding["second"]
    if difference is None:
        return f"{measure}: not measured for {finding['first']} and {second}"
    interval = difference["interval"]
    ends = f", 95% interval {interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
    number = len(difference["values"])
    return (
        f"{measure}: {finding['first']} minus {second} {difference['mean']:+.3f}{ends}, "
        f"{number} seed{'s' if number > 1 else ''}"
    )


def finding_cells(finding: Mapping) -> Cells:
    """A finding of the paper, what was measured for it, and the verdict."""
    verdict = f"{finding['verdict']}: {finding['why']}"
    return finding["paper"], sentence(finding), verdict


def _curves(results: Mapping) -> str:
    by_arm = {
        arm: [row["curve"] for row in results["runs"] if row["arm"] == arm]
        for arm in results["arms"]
    }
    return curves(by_arm, "share of the run's compute, from 0 to 1; a line for each seed")


def _bars(results: Mapping, measure: str) -> str:
    before = results[SHIPPED][measure]["mean"]
    by_arm = {
        arm: (known[measure]["mean"], known[measure]["interval"], known[measure]["values"])
        for arm, known in results["arms"].items()
    }
    return bars(by_arm | {SHIPPED: (before, None, ())})


def _understanding(results: Mapping) -> list[Cells]:
    before = results[SHIPPED]["understanding"]["mean"]
    return [
        (row["name"], f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
        for row in results["runs"]
        for after in (row["scores"]["understanding"]["mean"],)
    ]


def _cost(results: Mapping) -> list[Cells]:
    unknown = "not measured: it was cut off"
    return [
        (
            row["name"],
            str(row["steps"]),
            f"{row['tflop']:.2f}",
            unknown if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}",
        )
        for row in results["runs"]
    ]


def _sheets(results: Mapping) -> list[str]:
    """The first seed of each arm, and the shipped weights."""
    first = {row["arm"]: row["name"] for row in reversed(results["runs"])}
    return [*(first[arm] for arm in results["arms"]), SHIPPED]
