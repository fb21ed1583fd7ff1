"""What the benchmarks' flags have in common, and what becomes of a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.utils.disk_usage import output_file, output_folder
from triptych.utils.errors import UserError
from triptych.utils.limits import COUNT

if TYPE_CHECKING:
    from triptych.evaluation.judges.base import Judge
    from triptych.evaluation.report import Report

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def add_report(parser: argparse.ArgumentParser) -> None:
    """The flags of what is written."""
    parser.add_argument("--out", type=output_file, metavar="FILE", help="the report, as JSON")
    parser.add_argument(
        "--page", type=output_file, metavar="FILE", help="the report, as an HTML page"
    )


def add_pictures(parser: argparse.ArgumentParser, name: str) -> None:
    """The flags of where the pictures of a benchmark are, and of how much of it is done."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--images", type=Path, metavar="DIR", help="score the pictures that are in this folder"
    )
    where.add_argument(
        "--pictures",
        type=output_folder,
        metavar="DIR",
        default=Path("out", name),
        help="folder to make them in; what is done there is not done again; default %(default)s",
    )
    parser.add_argument("--generate-only", action="store_true", help="make them, score nothing")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="the first N prompts alone")


def add_judge(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The flags of who answers questions about pictures."""
    judge = parser.add_argument_group("who judges")
    shown = f"; default {default}, if it is on this machine" if default else ""
    judge.add_argument(
        "--judge",
        metavar="MODEL",
        help=f"folder, name on the hub, or its name at --judge-url{shown}",
    )
    judge.add_argument(
        "--judge-url", metavar="URL", help="endpoint that speaks OpenAI's; key: OPENAI_API_KEY"
    )
    judge.add_argument(
        "--answers", type=output_file, metavar="FILE", help="remembers them: nothing is asked twice"
    )


def named_or_here(named: str | None, default: str, flag: str) -> str:
    """The model that was named, else the default: nothing is downloaded that nobody named.

    Raises:
        UserError: none was named, and the default is not on this machine.
    """
    if named is not None:
        return named
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(default, "config.json"), str):
        raise UserError(
            f"{default}, which judges by default, is not on this machine; name it, and it is "
            f"downloaded: {flag} {default}; or give a folder."
        )
    return default


def judge_of(parsed: argparse.Namespace) -> Judge:
    """The judge that was named, or Qwen2.5-VL.

    Raises:
        UserError: there is no such model.
    """
    if parsed.judge_url:
        from triptych.evaluation.judges.openai_api import EndpointJudge

        return EndpointJudge(parsed.judge_url, parsed.judge or QWEN)
    import torch

    from triptych.evaluation.judges.local import QwenJudge

    source, device = named_or_here(parsed.judge, QWEN, "--judge"), device_of(parsed)
    return QwenJudge(source, device, torch.float32 if device == "cpu" else torch.bfloat16)


def device_of(parsed: argparse.Namespace) -> str:
    """Where judges compute: --device, else the first GPU if there is one."""
    import torch

    return parsed.device or ("cuda" if torch.cuda.is_available() else "cpu")


def hand_out(report: Report, parsed: argparse.Namespace) -> None:
    """Write what was asked for, and print the table."""
    write(report, parsed)
    print(report.table())


def write(report: Report, parsed: argparse.Namespace) -> None:
    """The files that were asked for."""
    if parsed.out:
        report.save(parsed.out)
    if parsed.page:
        report.page(parsed.page)
