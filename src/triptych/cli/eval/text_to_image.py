"""`triptych eval geneval`, `dpg` and `wise`: images for published prompts, made and judged."""

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
from triptych.cli.eval.generate_images import ImageRequest, make_images
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

The folder is that of the original scorer, which reads it, too. A run that was stopped goes on."""

DPG = """\
  triptych eval dpg --from runs/mine --questions dpg_bench.csv --answer-cache said.jsonl \
--judge Qwen/Qwen2.5-VL-7B-Instruct --out dpg.json
  triptych eval dpg --from runs/mine --limit 2 --generate-only --images-dir out/grids
  triptych eval dpg --score-only --images-dir grids --questions dpg_bench.csv \
--judge-url http://127.0.0.1:8000/v1

dpg_bench.csv is in the ELLA repository; it is asked for where grids are scored."""

WISE = """\
  triptych eval wise --prompts cultural_common_sense.json natural_science.json --generate-only
  triptych eval wise --prompts *.json --protocol verified --judge qwen3.5-35b-a3b \
--judge-url http://127.0.0.1:8000/v1 --answer-cache answers.jsonl --out wise.json

The prompts have no licence, so you download them, from the WISE repository."""


def geneval(arguments: list[str]) -> None:
    """553 prompts, 4 images each: are objects there, in number, colour and place?"""
    parser = _parser("geneval", "GenEval: objects, their number, colour and place.", GENEVAL)
    add_num_images(parser, 4)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="file of prompts; default the published ones"
    )
    judge = parser.add_argument_group(
        "judge (a name on the hub that you give is downloaded; a default must be on this machine)"
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
            folder, detector, colours, prompts, parsed.num_images_per_prompt, limit=parsed.limit
        )

    wanted = [
        ImageRequest(
            benchmark.sample_path(Path(), number, copy).as_posix(), entry["prompt"], number, copy
        )
        for number, entry in enumerate(entries)
        for copy in range(parsed.num_images_per_prompt)
    ]

    def beside(folder: Path) -> None:
        for number, entry in enumerate(entries):
            benchmark.write_metadata(folder, number, entry)

    _run(wanted, parsed, scorer, beside)


def dpg(arguments: list[str]) -> None:
    """1,065 long prompts, a grid of 2x2 images each: does it show all that they say?"""
    parser = _parser("dpg", "DPG-Bench: long prompts, asked question by question.", DPG)
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
        "--questions", type=Path, metavar="FILE", help="dpg_bench.csv, the file of questions"
    )
    add_judge(parser, QWEN)
    parsed = _parse(parser, arguments)
    if parsed.questions is None and not _only_makes(parsed):
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
            parsed.questions,
            prompts,
            grid=parsed.grid,
            answers=parsed.answer_cache,
            limit=parsed.limit,
        )

    wanted = [
        ImageRequest(
            benchmark.grid_path(Path(), str(entry["item_id"])).as_posix(),
            entry["prompt"],
            number,
            tiles=parsed.grid**2,
        )
        for number, entry in enumerate(entries)
    ]
    _run(wanted, parsed, scorer)


def wise(arguments: list[str]) -> None:
    """1,000 prompts that you download: does an image show what a prompt means?"""
    parser = _parser("wise", "WISE: what prompts mean rather than say.", WISE)
    parser.add_argument(
        "--prompts", type=Path, nargs="+", metavar="FILE", help="prompt files of WISE"
    )
    parser.add_argument(
        "--protocol",
        choices=["legacy", "verified"],
        default="legacy",
        help="version of the benchmark, whose scores do not compare; default %(default)s",
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
    if parsed.judge is None and not _only_makes(parsed):
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
            parsed.instructions,
            parsed.answer_cache,
            parsed.limit,
        )

    wanted = [
        ImageRequest(benchmark.image_path(Path(), each.number).as_posix(), each.text, each.number)
        for each in prompts
    ]
    _run(wanted, parsed, scorer)


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = command_parser(f"eval {name}", description, examples)
    add_report(parser)
    add_images(parser, name)
    add_parts(parser, "seed of all images: each has its own, by its prompt's number")
    add_generation(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parsed = parse(parser, arguments)
    if parsed.score_only and parsed.part != (0, 1):
        parser.error("--score-only makes no images; leave out --part")
    if not parsed.score_only:
        try:
            output_folder(str(parsed.images_dir))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --images-dir: {error}")
    return parsed


def _only_makes(parsed: argparse.Namespace) -> bool:
    """Whether nothing is scored: a part is not a whole benchmark."""
    return parsed.generate_only or parsed.part != (0, 1)


def _run(
    wanted: list[ImageRequest],
    parsed: argparse.Namespace,
    scorer: Callable[[], Callable[[Path], Report]],
    beside: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Make the missing images, and score the folder.

    Args:
        scorer: function that loads the judge, before any image is made: it may be missing.
        beside: function that writes the files beside the images.
    """
    judging = not _only_makes(parsed) and is_first_rank()
    score = scorer() if judging else None
    if not parsed.score_only:
        make_images(wanted, parsed)
        beside(parsed.images_dir)
    if score is not None:
        from triptych.evaluation.provenance import add_provenance

        report = score(parsed.images_dir)
        add_provenance(report)
        write_report(report, parsed)
