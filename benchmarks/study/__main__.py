"""The command line of the study: `make study ARGS="..."`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from study.page import render, sentence
from study.plan import ROOT, Plan, table
from study.reading import read, write_runs
from study.runs import done, work
from triptych.evaluation.report import write_text
from triptych.shapes_world.shards import ensure_shapes
from triptych.utils.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is left, then write the report."""
    parser = argparse.ArgumentParser(prog="make study", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="of clip_flow")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(Plan.seeds), help="of each arm"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where it trains")
    parser.add_argument("--out", type=Path, default=Path("docs/study"), help="the report")
    parser.add_argument("--plan", action="store_true", help="print the runs and stop")
    parsed = parser.parse_args(arguments)
    plan = Plan(parsed.steps, tuple(parsed.seeds))
    runs, jobs = plan.runs(), min(2, len(os.sched_getaffinity(0)))
    print(table(plan, runs, done(runs, parsed.runs), jobs), flush=True)
    if parsed.plan:
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        world = ensure_shapes(ROOT / "data/shapes")
    except ValueError as error:  # something else is in the folder
        raise UserError(str(error)) from error
    try:
        work(plan, runs, parsed.runs, world, jobs)
    finally:  # of what is done, if some of it failed or it was stopped
        if done(runs, parsed.runs):
            report(plan, runs, parsed.runs, parsed.out)


def report(plan: Plan, runs: list, folder: Path, out: Path) -> None:
    """Write index.html, results.json and runs.csv; print the verdicts, as one line of JSON last."""
    results = read(plan, runs, folder)
    write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_runs(results["runs"], out / "runs.csv")
    write_text(out / "index.html", render(results, folder))
    for finding in results["findings"]:
        print(f"{finding['verdict']:10} {sentence(finding)}")
    print(f"the report is {out / 'index.html'}, its data results.json and runs.csv beside it")
    print(json.dumps({"study": [in_short(finding) for finding in results["findings"]]}))


def in_short(finding: dict) -> dict:
    """A finding for other programs, in a line."""
    difference = finding["difference"] or {"mean": None, "interval": None}
    return {
        **{name: finding[name] for name in ("measure", "first", "second", "verdict")},
        **{name: difference[name] for name in ("mean", "interval")},
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("study: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
