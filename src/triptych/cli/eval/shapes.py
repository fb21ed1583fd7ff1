"""`triptych eval shapes`: every score of the shapes world."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import (
    add_generation,
    add_num_images,
    add_parts,
    command_parser,
    generation_of,
    load_pipeline,
    model_of,
    parse,
)
from triptych.cli.devices import for_each
from triptych.cli.eval.arguments import add_report, write
from triptych.cli.jobs import bar
from triptych.inference.generation_config import GenerationConfig
from triptych.utils.disk_usage import output_folder
from triptych.utils.limits import ALL_IMAGES

if TYPE_CHECKING:
    from triptych.evaluation.report import Report
    from triptych.evaluation.shapes.all_scores import Plan, Verdict

EXAMPLES = """\
  triptych eval shapes --out scores.json
  triptych eval shapes --from runs/tiny/stage2 --ema -n 4 --devices 2 --out scores.json
  triptych eval shapes --num-captions 12 --images-dir out/shapes --page shapes.html

Scores are the same on every run, whatever the number of devices."""


def shapes(arguments: list[str]) -> None:
    """The shapes world: held-out captions, reconstructions, questions and edits"""
    parser = command_parser("eval shapes", "Score a model on the shapes world.", EXAMPLES)
    add_report(parser)
    parser.add_argument(
        "--num-captions",
        type=ALL_IMAGES,
        default=600,
        metavar="N",
        help="number of captions of each score; default %(default)s",
    )
    add_num_images(parser)
    parser.add_argument(
        "--images-dir",
        type=output_folder,
        metavar="FOLDER",
        help="folder to keep the images in: a stopped run resumes with them, and the page shows "
        "them; default none is kept",
    )
    add_parts(parser, "seed of the noise that images start from", 64)
    add_generation(parser)
    parsed = parse(parser, arguments)
    from triptych.evaluation.shapes.all_scores import Plan, report

    plan = Plan(
        num_images=parsed.num_captions,
        per_caption=parsed.num_images_per_prompt,
        seed=parsed.seed,
        batch_size=parsed.batch_size,
        generation_config=GenerationConfig(**generation_of(parsed)),
    )
    if parsed.part != (0, 1) and parsed.images_dir is None:
        parser.error("a part is not a whole score; give --images-dir, to keep its images")
    found, used = _found(parsed, plan)
    if parsed.part != (0, 1):
        return
    whole = report(found, plan, parsed.images_dir)
    whole.settings |= used | model_of(parsed)
    write(whole, parsed)
    _show(whole)


def _found(parsed: argparse.Namespace, plan: Plan) -> tuple[list[Verdict], dict[str, Any]]:
    """All verdicts of the plan, or those of the images of a part, and `_used`."""
    from triptych.evaluation.image_cache import KeptImages
    from triptych.evaluation.shapes.all_scores import SPLITS, verdicts

    work = list(plan.work())
    part, parts = parsed.part
    mine = [n for n, (score, _, _) in enumerate(work) if parts == 1 or score in SPLITS]
    mine = mine[part::parts]
    used: dict[str, Any] = {}
    total = sum(len(work[n][2]) for n in mine)
    with bar(total, 0, parsed.devices * parsed.num_nodes) as advance:

        def load(device: Any) -> tuple[Any, KeptImages | None]:
            pipe = load_pipeline(parsed, device)
            used.update(_used(pipe, plan))
            return pipe, KeptImages(parsed.images_dir, used) if parsed.images_dir else None

        def perform(loaded: tuple[Any, KeptImages | None], number: int) -> list[Verdict]:
            pipe, kept = loaded
            found = list(verdicts(pipe.model, plan, (mine[number], len(work)), kept))
            advance(len(found))
            return found

        found = for_each(parsed, len(mine), load, perform)
    return [verdict for each in found for verdict in each], used


def _used(pipe: Any, plan: Plan) -> dict[str, Any]:
    """Settings that determine the scores beside the request: the model's own settings, and the
    digest of its weights."""
    from triptych.cli.jobs import digest_of

    return plan.generation_config.resolved(pipe.model) | {"weights": digest_of(pipe)}


def _show(whole: Report) -> None:
    """The scores as JSON on standard output, for programs; the table on standard error."""
    import sys

    from triptych.evaluation.report import nested

    own = {name: score for name, score in whole.scores.items() if not name.startswith("chance/")}
    print(replace(whole, scores=own).table(), file=sys.stderr)
    print(json.dumps({"scores": nested(whole.scores)}, indent=1, sort_keys=True))
