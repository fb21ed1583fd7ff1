"""The project's own commands beside Lightning's. Each takes the arguments after its name."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from triptych.cli.eval.main import evaluate
from triptych.cli.generate import chat, edit, generate, reconstruct
from triptych.inference.trusted_config import add_trust
from triptych.utils.disk_usage import announce, output_file, output_folder, refuse_other_files
from triptych.utils.errors import UserError
from triptych.utils.limits import PORT, TRAINING_STEPS

DEMO_FILES = re.compile(r"index\.html|scores\.json|\..*")
DEMO_BYTES = 1_000_000
TINY = ["conf/model/tiny.yaml"]


def _parser(name: str, command: Callable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"triptych {name}",
        description=command.__doc__,
        epilog="Any --model.x=y flag of `triptych fit` may follow.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", action="append", metavar="YAML", help=f"model files; default {TINY[0]}"
    )
    add_trust(parser)
    return parser


def _load(parsed: argparse.Namespace, flags: list[str], parser: argparse.ArgumentParser):
    _refuse_unknown(flags, parser)
    from triptych.inference.loading import (
        load_model,  # torch takes seconds to import: after parsing
    )

    return load_model(parsed.config or TINY, flags, trust_class=parsed.trust_class)


def _refuse_unknown(flags: list[str], parser: argparse.ArgumentParser) -> None:
    unknown = [flag for flag in flags if not flag.startswith("--model.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")


def demo(arguments: list[str]) -> None:
    """A page of pictures, answers and reconstructions: triptych demo --out out/demo"""
    started = time.time()
    parser = _parser("demo", demo)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder")
    parsed, flags = parser.parse_known_args(arguments)
    refuse_other_files(parsed.out, DEMO_FILES, "--out")
    announce("the demo", parsed.out, DEMO_BYTES)
    model = _load(parsed, flags, parser)
    from triptych.evaluation.shapes.demo import make_demo

    scores = make_demo(model, parsed.out, started=started)
    print(json.dumps(scores))
    print(f"open {parsed.out / 'index.html'}")


def app(arguments: list[str]) -> None:
    """A web page to generate, chat, edit and compare: triptych app --from runs/tiny/stage2"""
    parser = _parser("app", app)
    parser.add_argument("--from", dest="source", help="preset, folder, run or checkpoint to show")
    parser.add_argument("--other", metavar="SOURCE", help="a second one, to compare with it")
    parser.add_argument("--ema", action="store_true", help="moving average, of a --from checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to show it to other machines")
    parser.add_argument("--port", type=PORT, default=7860)
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="further name in Host headers; * is every one; may be repeated",
    )  # fmt: skip
    parser.add_argument("--votes", type=Path, default=Path("votes.jsonl"), help="file to add to")
    parser.add_argument("--prompts", type=Path, help="file of prompts to vote on, one a line")
    parsed, flags = parser.parse_known_args(arguments)
    configs = parsed.config or []
    source = parsed.source or (configs.pop(0) if configs else "tiny")
    _refuse_unknown(flags, parser)
    from triptych.serving.webui.launch import show  # torch takes seconds to import: after parsing
    from triptych.serving.webui.models import find_sources

    overrides = [*(f"--config={each}" for each in configs), *flags]
    sources = find_sources(source, parsed.other, parsed.ema, overrides, parsed.trust_class)
    show(sources, parsed.votes, parsed.prompts, parsed.host, parsed.port, parsed.allow_host)


def convert(arguments: list[str]) -> None:
    """A published checkpoint to our files, or a model file back: triptych convert SOURCE TARGET"""
    parser = argparse.ArgumentParser(
        prog="triptych convert",
        description=convert.__doc__,
        epilog="See docs/published_checkpoints.md. An interrupted conversion goes on where it was.",
    )
    parser.add_argument(
        "source",
        nargs="+",
        help="folder or hub id of BLIP3-o, of Qwen2.5-VL or of a pixel decoder; of SigLIP and of "
        "SANA, together; or a model file (.yaml), which is written back as BLIP3-o is published",
    )
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--encoder", help="EVA tower, published apart: file, folder or hub id")
    parser.add_argument("--decoder", help="pixel decoder of its own: folder or hub id")
    add_trust(parser)
    parsed, flags = parser.parse_known_args(arguments)
    back = parsed.source[0].endswith((".yaml", ".yml"))
    unknown = [flag for flag in flags if not (back and flag.startswith("--model."))]
    if unknown or (back and (parsed.encoder or parsed.decoder)):
        parser.error(f"unrecognized arguments: {' '.join(unknown) or '--encoder or --decoder'}")
    if back and parsed.source[1:]:
        parser.error(f"a model file is converted alone, without {' '.join(parsed.source[1:])}")
    try:
        if back:
            from triptych.checkpoints.published.export import export
            from triptych.inference.loading import describe_model

            export(describe_model(parsed.source, flags, parsed.trust_class), parsed.target)
        else:
            from triptych.checkpoints.published import convert as conversion

            conversion.convert_published(
                parsed.source, parsed.target, parsed.encoder, parsed.decoder
            )
    except KeyboardInterrupt:  # 130: what a shell reports of a program that Ctrl-C ended
        parser.exit(130, "triptych: interrupted; the same command goes on where it stopped.\n")


def export(arguments: list[str]) -> None:
    """Weights for inference from a training checkpoint: triptych export last.ckpt --ema"""
    parser = argparse.ArgumentParser(prog="triptych export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="of a training run: file or folder")
    parser.add_argument(
        "--out", type=output_file, default=Path("weights.safetensors"), help="default %(default)s"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="in the file"
    )
    parsed = parser.parse_args(arguments)
    import torch

    from triptych.checkpoints.training_checkpoint import export_checkpoint

    export_checkpoint(parsed.checkpoint, parsed.out, parsed.ema, getattr(torch, parsed.dtype))
    print(f"{parsed.out}: --model.weights.LABEL={parsed.out} reads it")


def serve(arguments: list[str]) -> None:
    """OpenAI's HTTP interface to a model: triptych serve --port 8000"""
    from triptych.cli.serve import serve as run

    run(arguments)


def data(arguments: list[str]) -> None:
    """Data before training: pack, index, inspect, features: triptych data inspect FOLDER"""
    from triptych.cli.data import run

    run(arguments)


def parity(arguments: list[str]) -> None:
    """Recorded values of the published code against ours: triptych parity FOLDER"""
    parser = argparse.ArgumentParser(prog="triptych parity", description=parity.__doc__)
    parser.add_argument("cases", type=Path, metavar="FOLDER", help="of cases, a folder each")
    parsed = parser.parse_args(arguments)
    from triptych.evaluation.parity import run_cases

    try:
        report = run_cases(parsed.cases)
    except UserError as error:
        parser.exit(2, f"triptych parity: {error}\n")  # 1 says that a quantity is off
    print(report.summary())
    if report.failed:
        parser.exit(1)
    if report.left_out:
        parser.exit(2, f"triptych parity: {'; '.join(report.left_out.values())}.\n")


def pretrain(arguments: list[str]) -> None:
    """All weights of the tiny preset from nothing, resumable: triptych pretrain"""
    parser = argparse.ArgumentParser(prog="triptych pretrain", description=pretrain.__doc__)
    parser.add_argument(
        "--runs", type=output_folder, default=Path("runs/pretrain"), help="working folder"
    )
    parser.add_argument(
        "--steps", type=TRAINING_STEPS, help="cut every part to this many steps (a test)"
    )
    parser.add_argument("--status", action="store_true", help="show what is done and stop")
    parsed = parser.parse_args(arguments)
    from triptych.cli.pretrain_tiny import run

    run(parsed.runs, parsed.steps, parsed.status)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "generate": generate,
    "chat": chat,
    "edit": edit,
    "reconstruct": reconstruct,
    "eval": evaluate,
    "demo": demo,
    "app": app,
    "serve": serve,
    "convert": convert,
    "export": export,
    "data": data,
    "parity": parity,
    "pretrain": pretrain,
}
