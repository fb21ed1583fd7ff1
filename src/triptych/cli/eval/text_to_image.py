"""`triptych eval geneval`, `dpg` and `wise`: images of published prompts, generated and scored."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import (
    add_generation,
    add_num_images,
    add_parts,
    command_parser,
    device_of,
    parse,
)
from triptych.cli.eval.arguments import (
    QWEN,
    add_images,
    add_judge,
    add_report,
    judge_of,
    named_or_cached,
    write_report,
)
from triptych.cli.eval.generate_images import BenchmarkFile, make_images
from triptych.utils.disk_usage import output_folder
from triptych.utils.limits import TILES
from triptych.utils.signals import is_first_rank

if TYPE_CHECKING:
    from triptych.evaluation.report import Report

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"

GENEVAL = """\
  triptych eval geneval --from runs/mine --devices 8 --out geneval.json \
--detector facebook/mask2former-swin-small-coco-instance --clip openai/clip-vit-large-patch14
  triptych eval geneval --limit 2 -n 1 --generate-only --images-dir out/few
  triptych eval geneval --score-only --images-dir images --detector mask2former \
--clip clip-vit-large-patch14

The original scorer can read the folder, too. A run that was stopped resumes."""

DPG = """\
  triptych eval dpg --from runs/mine --questions dpg_bench.csv --answer-cache answers.jsonl \
--judge Qwen/Qwen2.5-VL-7B-Instruct --out dpg.json
  triptych eval dpg --from runs/mine --limit 2 --generate-only --images-dir out/grids
  triptych eval dpg --score-only --images-dir grids --questions dpg_bench.csv \
--judge-url http://127.0.0.1:8000/v1

dpg_bench.csv is in the ELLA repository; scoring needs it."""

WISE = """\
  triptych eval wise --prompts cultural_common_sense.json natural_science.json --generate-only
  triptych eval wise --prompts *.json --protocol verified --judge qwen3.5-35b-a3b \
--judge-url http://127.0.0.1:8000/v1 --answer-cache answers.jsonl --out wise.json

The prompts have no licence: download them from the WISE repository."""


def geneval(arguments: list[str]) -> None:
    """Run GenEval: 553 prompts about objects, their number, colour and position."""
    parser = _parser("geneval", "GenEval: objects, their number, colour and position.", GENEVAL)
    add_num_images(parser, 4)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="file of prompts; default the published ones"
    )
    judge = parser.add_argument_group(
        "judge (a hub name is downloaded if given; a default must be on this machine)"
    )
    judge.add_argument(
        "--detector",
        metavar="MODEL",
        help=f"Mask2Former that detects objects: a folder or a hub name; default {DETECTOR}",
    )
    judge.add_argument(
        "--clip",
        metavar="MODEL",
        help=f"CLIP that names colours: a folder or a hub name; default {CLIP}",
    )
    parsed = _parse(parser, arguments)
    from triptych.evaluation import geneval as benchmark
    from triptych.evaluation.geneval.layout import PACKAGED

    prompts = parsed.prompts or PACKAGED
    entries = benchmark.read_prompts(prompts)[: parsed.limit]

    def scorer() -> Callable[[Path], Report]:
        device = device_of(parsed)
        sources = (
            named_or_cached(parsed.detector, DETECTOR, "--detector"),
            named_or_cached(parsed.clip, CLIP, "--clip"),
        )
        detector = benchmark.Mask2Former(sources[0], device)
        colours = benchmark.ClipColours(sources[1], device)
        return lambda folder: benchmark.score(
            folder,
            detector,
            colours,
            prompts=prompts,
            images_per_prompt=parsed.num_images_per_prompt,
            limit=parsed.limit,
        )

    requests = [
        BenchmarkFile(
            benchmark.sample_path(Path(), number, copy).as_posix(), entry["prompt"], number, copy
        )
        for number, entry in enumerate(entries)
        for copy in range(parsed.num_images_per_prompt)
    ]

    def write_entries(folder: Path) -> None:
        for number, entry in enumerate(entries):
            benchmark.write_metadata(folder, number, entry)

    _run(requests, parsed, scorer, write_entries)


def dpg(arguments: list[str]) -> None:
    """Run DPG-Bench: 1,065 long prompts with a grid of images each, scored by questions."""
    parser = _parser("dpg", "DPG-Bench: long prompts, scored question by question.", DPG)
    parser.add_argument(
        "--grid",
        type=TILES,
        default=2,
        metavar="N",
        help="number of images on each side of a grid; default %(default)s",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="file of prompts; default the published ones"
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="file of questions, dpg_bench.csv; required for scoring",
    )
    add_judge(parser, QWEN)
    parsed = _parse(parser, arguments)
    if parsed.questions is None and not _skips_scoring(parsed):
        parser.error("give --questions dpg_bench.csv, or --generate-only")
    from triptych.evaluation import dpg as benchmark
    from triptych.evaluation.dpg.layout import PACKAGED

    prompts = parsed.prompts or PACKAGED
    entries = benchmark.read_prompts(prompts)[: parsed.limit]

    def scorer() -> Callable[[Path], Report]:
        benchmark.read_questions(parsed.questions)  # before the judge is loaded
        judge = judge_of(parsed)
        return lambda folder: benchmark.score(
            folder,
            judge,
            questions=parsed.questions,
            prompts=prompts,
            grid=parsed.grid,
            answers=parsed.answer_cache,
            limit=parsed.limit,
        )

    requests = [
        BenchmarkFile(
            benchmark.grid_path(Path(), str(entry["item_id"])).as_posix(),
            entry["prompt"],
            number,
            tiles=parsed.grid**2,
        )
        for number, entry in enumerate(entries)
    ]
    _run(requests, parsed, scorer)


def wise(arguments: list[str]) -> None:
    """Run WISE: 1,000 prompts whose meaning goes beyond their words."""
    parser = _parser("wise", "WISE: prompts whose meaning goes beyond their words.", WISE)
    parser.add_argument(
        "--prompts", type=Path, nargs="+", metavar="FILE", help="prompt files of WISE; required"
    )
    parser.add_argument(
        "--protocol",
        choices=["legacy", "verified"],
        default="legacy",
        help="version of the benchmark; scores of the two cannot be compared; default %(default)s",
    )
    parser.add_argument(
        "--instructions",
        type=Path,
        metavar="FILE",
        help="file of the judge's instructions; default our wording",
    )
    add_judge(parser, None)
    parsed = _parse(parser, arguments)
    if not parsed.prompts:
        parser.error("give --prompts, the files that you downloaded from the WISE repository")
    if parsed.judge is None and not _skips_scoring(parsed):
        parser.error("give --judge MODEL, with --judge-url URL for an endpoint; or --generate-only")
    from triptych.evaluation import wise as benchmark

    protocol = benchmark.PROTOCOLS[parsed.protocol]
    prompts = list(benchmark.read_prompts(parsed.prompts, protocol).values())[: parsed.limit]

    def scorer() -> Callable[[Path], Report]:
        judge = judge_of(parsed)
        return lambda folder: benchmark.score(
            folder,
            judge,
            parsed.prompts,
            protocol,
            instructions=parsed.instructions,
            answers=parsed.answer_cache,
            limit=parsed.limit,
        )

    requests = [
        BenchmarkFile(benchmark.image_path(Path(), each.number).as_posix(), each.text, each.number)
        for each in prompts
    ]
    _run(requests, parsed, scorer)


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = command_parser(f"eval {name}", description, examples)
    add_report(parser)
    add_images(parser, name)
    add_parts(parser, "seed that determines the seed of every image")
    add_generation(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parsed = parse(parser, arguments)
    if parsed.score_only and parsed.part != (0, 1):
        parser.error("--score-only generates no images; leave out --part")
    if not parsed.score_only:
        try:
            output_folder(str(parsed.images_dir))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --images-dir: {error}")
    return parsed


def _skips_scoring(parsed: argparse.Namespace) -> bool:
    """Whether images are only generated: a --part of them cannot be scored."""
    return parsed.generate_only or parsed.part != (0, 1)


def _run(
    requests: list[BenchmarkFile],
    parsed: argparse.Namespace,
    scorer: Callable[[], Callable[[Path], Report]],
    write_entries: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Generate the missing images, and score the folder.

    Args:
        scorer: function that loads the judge; called first, since the judge may be missing.
        write_entries: function that writes the metadata files next to the images.
    """
    judging = not _skips_scoring(parsed) and is_first_rank()
    score = scorer() if judging else None
    if not parsed.score_only:
        make_images(requests, parsed)
        write_entries(parsed.images_dir)
    if score is not None:
        from triptych.evaluation.provenance import add_provenance

        report = score(parsed.images_dir)
        add_provenance(report)
        write_report(report, parsed)
