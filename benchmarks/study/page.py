"""The study's report: one HTML file that needs neither network nor script.

Every sentence about a result is made from the numbers of `reading.read`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from study.drawings import bars, curves
from study.reading import MEASURES
from study.runs import SHIPPED
from triptych.evaluation.shapes.demo_page import STYLE

SETTINGS = ("command", "plan", "machine", "versions")

MORE_STYLE = """
svg { max-width: 100%; font-size: 13px; } svg text { fill: var(--ink); }
svg .end { text-anchor: end; } svg .soft { fill: var(--soft); }
svg .rule { stroke: var(--line); } svg .dot { fill: var(--ink); }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg polyline { stroke-width: 2; opacity: 0.8; }
td { vertical-align: top; } .card img { width: 288px; } .card { max-width: 320px; }
table { max-width: none; }
"""

CANNOT_SAY = """
<ul>
<li>This is a small model (a language model of five layers, pictures of 48 pixels) in a drawn world,
at a small part of the training that the shipped weights had: what differs here may not differ at
the size of the paper, and the other way round. The shipped weights are clip_flow trained further:
these are differences in how fast, not in how far.</li>
<li>Its image encoder was trained on this very world. Its width, its rates and its distribution of
noise levels were chosen for clip_flow, and the other arms take them as they are: that may be to
the disadvantage of each of them.</li>
<li>VAE latents are put to the DiT four positions a token, so that all arms have as many
tokens.</li>
<li>All arms begin with the shipped language model, which has learned to answer questions. The
joint arm goes on training it, on questions and captions, while queries and DiT learn to draw: at
equal FLOPs they see fewer captions than those of the other arms, whose language model is frozen.
The two effects, fewer captions and a moving language model, are not told apart. Queries and DiT
learn at the same rate in all arms; the language model's own was not searched for. Joint training
from a language model that has learned nothing was not tried.</li>
<li>Diversity counts all that differs between two pictures of a caption, noise and ruined shapes
too: it says something only beside the quality.</li>
<li>Retrieval goes by the shipped image encoder's features, which three of the arms learn to
make. Many captions leave open what another one asks for, so that even the shipped weights reach
little more than a quarter.</li>
<li>FID and judgements by people, which the paper also goes by, are not measured.</li>
<li>Intervals are of Student's t over seeds, differences are between runs of equal seed, and
nothing is corrected for there being several comparisons.</li>
</ul>
"""


def render(results: Mapping, runs: Path) -> str:
    """The whole page; sheets of samples are read from the folder of the runs."""
    plan, missing = results["plan"], results["missing"]
    about = (
        f"{len(results['runs'])} runs on the tiny preset: {plan['steps']} steps of clip_flow, and "
        f"of the other arms what costs the same FLOPs; seeds {list(plan['seeds'])}; each scored "
        f"with {plan['images']} held-out captions."
    )
    unfinished = f"<p class='bad'>Not done: {escape(', '.join(missing))}.</p>" if missing else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which representation, objective and order of training</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<h1>Which representation, objective and order of training</h1>
<p>{escape(about)}</p>
{unfinished}
<h2>The paper's findings, and what is measured here</h2>
<p>After the study of BLIP3-o (arXiv 2505.09568), in our words. A verdict follows from the
interval alone: undecided where it includes no difference.</p>
{findings_table(results)}
<h2>What this cannot say</h2>
{CANNOT_SAY}
<h2>Prompt alignment while training</h2>
{_curves(results)}
{"".join(_bars(results, measure) for measure in MEASURES)}
<h2>Understanding before and after</h2>
{_understanding(results)}
<h2>Cost</h2>
<p>FLOPs by the formulas of triptych.training.flops; CPU seconds of `triptych fit` on one thread,
with imports and the curve's scores.</p>
{_cost(results)}
<h2>Samples</h2>
<p>The first {plan["each"]} pictures of the same captions from the same noise, none picked.</p>
<div class="cards">{"".join(_sheet(name, runs) for name in _sheets(results))}</div>
<h2>Settings</h2>
<pre>{escape(json.dumps({name: results[name] for name in SETTINGS}, indent=2))}</pre>
</body>
</html>
"""


def findings_table(results: Mapping) -> str:
    """A line for each finding, with its verdict."""
    rows = [_row(_finding_cells(finding), "td") for finding in results["findings"]]
    head = _row(("the paper", "here", "verdict"), "th")
    return f"<table>{head}{''.join(rows)}</table>"


def sentence(finding: Mapping) -> str:
    """What was measured for a finding, in words."""
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


def _finding_cells(finding: Mapping) -> tuple[str, str, str]:
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
    } | {SHIPPED: (before, None, ())}
    note = (
        f"<p>Bars: means with 95% intervals, dots: seeds. {SHIPPED}: the preset's own weights.</p>"
    )
    return f"<h2>{escape(MEASURES[measure])}</h2>{note}{bars(by_arm)}"


def _understanding(results: Mapping) -> str:
    before = results[SHIPPED]["understanding"]["mean"]
    rows = [
        _row(
            (row["name"], f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"),
            "td",
        )
        for row in results["runs"]
        for after in (row["scores"]["understanding"]["mean"],)
    ]
    return f"<table>{_row(('run', 'before', 'after', 'change'), 'th')}{''.join(rows)}</table>"


def _cost(results: Mapping) -> str:
    head = _row(("run", "steps", "TFLOP", "CPU seconds"), "th")
    rows = [
        _row(
            (
                row["name"],
                str(row["steps"]),
                f"{row['tflop']:.2f}",
                "not measured: it was cut off"
                if row["cpu_seconds"] is None
                else f"{row['cpu_seconds']:.0f}",
            ),
            "td",
        )
        for row in results["runs"]
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _sheets(results: Mapping) -> list[str]:
    """The first seed of each arm, and the shipped weights."""
    first = {row["arm"]: row["name"] for row in reversed(results["runs"])}
    return [*(first[arm] for arm in results["arms"]), SHIPPED]


def _sheet(name: str, runs: Path) -> str:
    data = base64.b64encode((runs / name / "sheet.png").read_bytes()).decode()
    return (
        f"<div class='card'><b>{escape(name)}</b>"
        f"<img alt='samples of {escape(name)}' src='data:image/png;base64,{data}'></div>"
    )


def _row(cells: tuple[str, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
