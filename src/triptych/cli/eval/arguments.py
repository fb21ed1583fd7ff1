"""Flags that benchmarks share, and output of their reports."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import device_of
from triptych.utils.disk_usage import output_file
from triptych.utils.errors import UserError
from triptych.utils.limits import COUNT

if TYPE_CHECKING:
    from triptych.evaluation.judges.base import Judge
    from triptych.evaluation.report import Report

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the files to write."""
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="JSON file of the report to write; default none",
    )
    parser.add_argument(
        "--page",
        type=output_file,
        metavar="FILE",
        help="HTML page of the report to write; default none",
    )


def add_images(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the flags of the images of a benchmark."""
    parser.add_argument(
        "--images-dir",
        type=Path,
        metavar="FOLDER",
        default=Path("out", name),
        help="folder of the images, of which only missing ones are generated; default %(default)s",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--generate-only", action="store_true", help="generation of the images without scores"
    )
    only.add_argument(
        "--score-only",
        action="store_true",
        help="scores of the images in the folder, none generated",
    )
    parser.add_argument(
        "--limit", type=COUNT, metavar="N", help="number of prompts to use; default all"
    )


def add_judge(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the flags of the judge, a model that answers questions about images."""
    judge = parser.add_argument_group("judge")
    shown = f"{default}, if it is on this machine" if default else "none"
    judge.add_argument(
        "--judge",
        metavar="MODEL",
        help=f"judge model: a folder, a hub name, or its name at --judge-url; default {shown}",
    )
    judge.add_argument(
        "--judge-url",
        metavar="URL",
        help="address of the judge's OpenAI-compatible server, with its key in $OPENAI_API_KEY; "
        "default none",
    )
    judge.add_argument(
        "--answer-cache",
        type=output_file,
        metavar="FILE",
        help="file of the judge's answers, so that no question is asked twice; default none",
    )


def named_or_cached(named: str | None, default: str, flag: str) -> str:
    """Return the named model, else the default if it is cached: only named models are downloaded.

    Raises:
        UserError: no model was named, and the default is not on this machine.
    """
    if named is not None:
        return named
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(default, "config.json"), str):
        raise UserError(
            f"{default}, the default judge, is not on this machine; name it to download it ({flag} "
            f"{default}), or give a folder."
        )
    return default


def judge_of(parsed: argparse.Namespace) -> Judge:
    """Load the named judge, by default Qwen2.5-VL.

    Raises:
        UserError: the model does not exist.
    """
    if parsed.judge_url:
        from triptych.evaluation.judges.openai_api import EndpointJudge

        return EndpointJudge(parsed.judge_url, parsed.judge or QWEN)
    import torch

    from triptych.evaluation.judges.local import QwenJudge

    source, device = named_or_cached(parsed.judge, QWEN, "--judge"), device_of(parsed)
    return QwenJudge(source, device, torch.float32 if device.type == "cpu" else torch.bfloat16)


def write_report(report: Report, parsed: argparse.Namespace) -> None:
    """Write the requested files, and print the table."""
    write_files(report, parsed)
    print(report.table())


def write_files(report: Report, parsed: argparse.Namespace) -> None:
    """Write the requested files."""
    if parsed.out:
        report.save(parsed.out)
    if parsed.page:
        report.page(parsed.page)
