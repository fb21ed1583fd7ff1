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
from triptych.cli.eval.arguments import add_report, write_files
from triptych.cli.jobs import progress_bar
from triptych.inference.generation_config import SETTINGS, GenerationConfig
from triptych.utils.disk_usage import output_folder
from triptych.utils.limits import ALL_IMAGES

if TYPE_CHECKING:
    from triptych.evaluation.report import Report
    from triptych.evaluation.shapes.all_scores import ItemScore, ScoringPlan

EXAMPLES = """\
  triptych eval shapes --out scores.json
  triptych eval shapes --from runs/tiny/stage2 --ema -n 4 --devices 2 --out scores.json
  triptych eval shapes --num-captions 12 --images-dir out/shapes --page shapes.html

Scores are the same on every run, whatever the number of devices."""


def shapes(arguments: list[str]) -> None:
    """Score a model on held-out captions, reconstructions, questions and edits of shapes."""
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
        help="folder to save the images to, with which a stopped run resumes and which the page "
        "shows; default none",
    )
    add_parts(parser, "seed of the noise that images start from", 64)
    add_generation(parser, SETTINGS)
    parsed = parse(parser, arguments)
    from triptych.evaluation.shapes.all_scores import ScoringPlan, report

    plan = ScoringPlan(
        num_images=parsed.num_captions,
        per_caption=parsed.num_images_per_prompt,
        seed=parsed.seed,
        batch_size=parsed.batch_size,
        generation_config=GenerationConfig(**generation_of(parsed)),
    )
    if parsed.part != (0, 1) and parsed.images_dir is None:
        parser.error("a --part cannot be scored; give --images-dir to save its images")
    found, settings = _item_scores(parsed, plan)
    if parsed.part != (0, 1):
        return
    scores = report(found, plan, parsed.images_dir)
    scores.settings |= settings | model_of(parsed)
    write_files(scores, parsed)
    _print(scores)


def _item_scores(
    parsed: argparse.Namespace, plan: ScoringPlan
) -> tuple[list[ItemScore], dict[str, Any]]:
    """Return the item scores of the plan, or of the images of a --part, and `_settings_of`."""
    from triptych.evaluation.image_cache import ImageCache
    from triptych.evaluation.shapes.all_scores import SPLITS, item_scores

    work = list(plan.work())
    part, parts = parsed.part
    mine = [n for n, (score, _, _) in enumerate(work) if parts == 1 or score in SPLITS]
    mine = mine[part::parts]
    settings: dict[str, Any] = {}
    total = sum(len(work[n][2]) for n in mine)
    with progress_bar(total, 0, parsed.devices * parsed.num_nodes) as advance:

        def load(device: Any) -> tuple[Any, ImageCache | None]:
            pipe = load_pipeline(parsed, device)
            pipe.check_edits(plan.generation_config)
            settings.update(_settings_of(pipe, plan))
            return pipe, ImageCache(parsed.images_dir, settings) if parsed.images_dir else None

        def compute(loaded: tuple[Any, ImageCache | None], number: int) -> list[ItemScore]:
            pipe, kept = loaded
            found = list(item_scores(pipe.model, plan, (mine[number], len(work)), kept))
            advance(len(found))
            return found

        found = for_each(parsed, len(mine), load, compute)
    return [score for each in found for score in each], settings


def _settings_of(pipe: Any, plan: ScoringPlan) -> dict[str, Any]:
    """Resolved sampling settings and the hash of the weights, which determine the scores too."""
    from triptych.cli.jobs import weights_hash_of

    return plan.generation_config.resolved(pipe.model) | {"weights": weights_hash_of(pipe)}


def _print(report: Report) -> None:
    """Print the scores as JSON on standard output, and as a table on standard error."""
    import sys

    from triptych.evaluation.report import nested

    own = {name: score for name, score in report.scores.items() if not name.startswith("chance/")}
    print(replace(report, scores=own).table(), file=sys.stderr)
    print(json.dumps({"scores": nested(report.scores)}, indent=1, sort_keys=True))
