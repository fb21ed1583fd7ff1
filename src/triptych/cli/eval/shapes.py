"""`triptych eval shapes`: every score of the shapes world."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import add_parts, load, parse, parser_of
from triptych.cli.eval.arguments import add_report, write
from triptych.cli.jobs import bar
from triptych.cli.workers import run_shards, without
from triptych.utils.disk_usage import output_folder
from triptych.utils.limits import ALL_IMAGES, IMAGES, SCALE, STEPS

if TYPE_CHECKING:
    from triptych.evaluation.report import Report
    from triptych.evaluation.shapes.all_scores import Plan, Verdict

EXAMPLES = """\
  triptych eval shapes --out scores.json
  triptych eval shapes --from runs/tiny/stage2 --ema -n 4 --processes 2 --out scores.json
  triptych eval shapes --images 12 --pictures out/shapes --page shapes.html

Scores are the same on every run, whatever the number of processes."""


def shapes(arguments: list[str]) -> None:
    """The shapes world: held-out captions, reconstructions, questions and edits"""
    parser = parser_of("eval shapes", "Score a model on the shapes world.", EXAMPLES)
    add_report(parser)
    parser.add_argument(
        "--images", type=ALL_IMAGES, default=600, help="captions; default %(default)s"
    )
    parser.add_argument(
        "-n", "--per-caption", type=IMAGES, default=1, help="pictures for each caption"
    )
    parser.add_argument(
        "--pictures",
        type=output_folder,
        metavar="DIR",
        help="keep the pictures here: a stopped run goes on with them, the page shows them",
    )
    parser.add_argument("--steps", type=STEPS, help="of the generator of features")
    parser.add_argument("--guidance", type=SCALE, help="how closely it follows the text")
    add_parts(parser, "of the noise that pictures start from")
    parser.set_defaults(batch_size=64)
    parsed, flags = parse(parser, arguments)
    from triptych.evaluation.shapes.all_scores import Plan, report

    names = ("images", "per_caption", "seed", "batch_size", "steps", "guidance")
    plan = Plan(**{name: getattr(parsed, name) for name in names})
    found, used = _found(parsed, flags, arguments, plan)
    if parsed.shard != (0, 1):  # one of several processes: whoever started it adds them up
        return
    whole = report(found, plan, parsed.pictures)
    from triptych.cli.arguments import model_of

    whole.settings |= used | model_of(parsed, flags)
    write(whole, parsed)
    _show(whole)


def _found(
    parsed: argparse.Namespace, flags: list[str], arguments: Sequence[str], plan: Plan
) -> tuple[list[Verdict], dict[str, Any]]:
    """All verdicts, by one process or several, and `_used`; a shard prints its own, one a line."""
    from triptych.evaluation.image_cache import KeptPictures
    from triptych.evaluation.shapes.all_scores import verdicts

    total = sum(len(numbers) for _, _, numbers in plan.work())
    found: list[Any] = []
    used: dict[str, Any] = {}
    with bar(total, 0) as advance:
        if parsed.processes > 1:

            def told(line: str) -> None:
                said = json.loads(line)
                if isinstance(said, dict):
                    used.update(said)
                else:
                    found.append(tuple(said))
                    advance(1)

            rest = without(arguments, "--processes")
            run_shards("eval", ["shapes", *rest], parsed.processes, None, told)
            return found, used
        pipe = load(parsed, flags)
        used = _used(pipe, plan)
        if parsed.shard != (0, 1):
            print(json.dumps(used), flush=True)
        kept = KeptPictures(parsed.pictures, used) if parsed.pictures else None
        for verdict in verdicts(pipe.model, plan, parsed.shard, kept):
            found.append(verdict)
            advance(1)
            if parsed.shard != (0, 1):
                print(json.dumps(verdict), flush=True)
    return found, used


def _used(pipe: Any, plan: Plan) -> dict[str, Any]:
    """What the scores follow from, beside what was asked for: the model's own settings, its weights
    by digest."""
    from triptych.cli.jobs import digest_of

    generation, decoder = pipe.model.generation, pipe.model.decoding.decoder
    return {
        "steps": generation.steps if plan.steps is None else plan.steps,
        "guidance": generation.guidance if plan.guidance is None else plan.guidance,
        "sampler": generation.sampler,
        "decoder_steps": decoder.steps,
        "decoder_guidance": decoder.guidance,
        "decoder_sampler": decoder.sampler,
        "weights": digest_of(pipe),
    }


def _show(whole: Report) -> None:
    """The scores as JSON on standard output, for programs; the table on standard error."""
    import sys

    from triptych.evaluation.report import nested

    own = {name: score for name, score in whole.scores.items() if not name.startswith("chance/")}
    print(replace(whole, scores=own).table(), file=sys.stderr)
    print(json.dumps({"scores": nested(whole.scores)}, indent=1, sort_keys=True))
