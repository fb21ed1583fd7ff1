"""`triptych eval geneval`, `dpg` and `wise`: pictures for published prompts, made and judged."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import add_parts, add_sampling, parse, parser_of
from triptych.cli.eval.arguments import (
    QWEN,
    add_judge,
    add_pictures,
    add_report,
    device_of,
    hand_out,
    judge_of,
    named_or_here,
)
from triptych.cli.eval.generate_images import Wanted, make_pictures
from triptych.utils.limits import IMAGES, TILES

if TYPE_CHECKING:
    from triptych.evaluation.report import Report

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"

GENEVAL = """\
  triptych eval geneval --from runs/mine --processes 8 --out geneval.json \
--detector facebook/mask2former-swin-small-coco-instance --clip openai/clip-vit-large-patch14
  triptych eval geneval --limit 2 -n 1 --generate-only --pictures out/few
  triptych eval geneval --images pictures --detector mask2former --clip clip-vit-large-patch14

The folder is that of the original scorer, which reads it, too. A run that was stopped goes on."""

DPG = """\
  triptych eval dpg --from runs/mine --questions dpg_bench.csv --answers said.jsonl \
--judge Qwen/Qwen2.5-VL-7B-Instruct --out dpg.json
  triptych eval dpg --from runs/mine --limit 2 --generate-only --pictures out/grids
  triptych eval dpg --images grids --questions dpg_bench.csv --judge-url http://127.0.0.1:8000/v1

dpg_bench.csv is in the ELLA repository; it is asked for where grids are scored."""

WISE = """\
  triptych eval wise --prompts cultural_common_sense.json natural_science.json --generate-only
  triptych eval wise --prompts *.json --protocol verified --judge qwen3.5-35b-a3b \
--judge-url http://127.0.0.1:8000/v1 --answers answers.jsonl --out wise.json

The prompts have no licence, so you download them, from the WISE repository."""


def geneval(arguments: list[str]) -> None:
    """553 prompts, 4 pictures each: are objects there, in number, colour and place?"""
    parser = _parser("geneval", "GenEval: objects, their number, colour and place.", GENEVAL)
    parser.add_argument("-n", "--number", type=IMAGES, default=4, help="pictures a prompt")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="in place of the published")
    judge = parser.add_argument_group(
        "who judges (a name on the hub that you give is downloaded; a default must be there)"
    )
    judge.add_argument(
        "--detector",
        metavar="MODEL",
        help=f"folder or name on the hub of a Mask2Former; default {DETECTOR}",
    )
    judge.add_argument(
        "--clip",
        metavar="MODEL",
        help=f"folder or name on the hub of the CLIP for colours; default {CLIP}",
    )
    parsed, flags = _parse(parser, arguments)
    from triptych.evaluation import geneval as benchmark
    from triptych.evaluation.geneval.layout import PACKAGED

    prompts = parsed.prompts or PACKAGED
    entries = benchmark.read_prompts(prompts)[: parsed.limit]

    def scorer() -> Callable[[Path], Report]:
        device = device_of(parsed)
        sources = (
            named_or_here(parsed.detector, DETECTOR, "--detector"),
            named_or_here(parsed.clip, CLIP, "--clip"),
        )
        detector = benchmark.Mask2Former(sources[0], device)
        colours = benchmark.ClipColours(sources[1], device)
        return lambda folder: benchmark.score(
            folder, detector, colours, prompts, parsed.number, limit=parsed.limit
        )

    wanted = [
        Wanted(
            benchmark.sample_path(Path(), number, copy).as_posix(), entry["prompt"], number, copy
        )
        for number, entry in enumerate(entries)
        for copy in range(parsed.number)
    ]

    def beside(folder: Path) -> None:
        for number, entry in enumerate(entries):
            benchmark.write_metadata(folder, number, entry)

    _run("geneval", arguments, wanted, parsed, flags, scorer, beside)


def dpg(arguments: list[str]) -> None:
    """1,065 long prompts, a grid of 2x2 pictures each: does it show all that they say?"""
    parser = _parser("dpg", "DPG-Bench: long prompts, asked question by question.", DPG)
    parser.add_argument("--grid", type=TILES, default=2, help="tiles a side; default 2")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="in place of the published")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="dpg_bench.csv")
    add_judge(parser, QWEN)
    parsed, flags = _parse(parser, arguments)
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
            answers=parsed.answers,
            limit=parsed.limit,
        )

    wanted = [
        Wanted(
            benchmark.grid_path(Path(), str(entry["item_id"])).as_posix(),
            entry["prompt"],
            number,
            tiles=parsed.grid**2,
        )
        for number, entry in enumerate(entries)
    ]
    _run("dpg", arguments, wanted, parsed, flags, scorer)


def wise(arguments: list[str]) -> None:
    """1,000 prompts that you download: does a picture show what a prompt means?"""
    parser = _parser("wise", "WISE: what prompts mean rather than say.", WISE)
    parser.add_argument("--prompts", type=Path, nargs="+", metavar="FILE", help="of WISE")
    parser.add_argument(
        "--protocol",
        choices=["legacy", "verified"],
        default="legacy",
        help="their numbers do not compare; default %(default)s",
    )
    parser.add_argument(
        "--instructions", type=Path, metavar="FILE", help="what the judge is told, not our words"
    )
    add_judge(parser, None)
    parsed, flags = _parse(parser, arguments)
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
            parsed.answers,
            parsed.limit,
        )

    wanted = [
        Wanted(benchmark.picture_path(Path(), each.number).as_posix(), each.text, each.number)
        for each in prompts
    ]
    _run("wise", arguments, wanted, parsed, flags, scorer)


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = parser_of(f"eval {name}", description, examples)
    add_report(parser)
    add_pictures(parser, name)
    add_parts(parser, "of all pictures: each has its own, by its prompt's number")
    add_sampling(parser)
    return parser


def _parse(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    parsed, flags = parse(parser, arguments)
    if parsed.images and _only_makes(parsed):
        parser.error("--images makes no pictures; leave out --generate-only and --shard")
    return parsed, flags


def _only_makes(parsed: argparse.Namespace) -> bool:
    """Whether nothing is scored: a shard alone is no whole benchmark."""
    return parsed.generate_only or parsed.shard != (0, 1)


def _run(
    name: str,
    arguments: list[str],
    wanted: list[Wanted],
    parsed: argparse.Namespace,
    flags: list[str],
    scorer: Callable[[], Callable[[Path], Report]],
    beside: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Make what is left, and score the folder.

    Args:
        scorer: loads who judges, before anything is made: it may not be there.
        beside: writes what belongs beside the pictures.
    """
    score = None if _only_makes(parsed) else scorer()
    if parsed.images is None:
        make_pictures(name, arguments, wanted, parsed, flags)
        beside(parsed.pictures)
    if score is not None:
        from triptych.evaluation.provenance import add_provenance

        report = score(parsed.images or parsed.pictures)
        add_provenance(report)
        hand_out(report, parsed)
