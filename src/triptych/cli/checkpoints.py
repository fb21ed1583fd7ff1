"""`triptych convert` and `export`: conversion of weights."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import DTYPES, command_parser, parse
from triptych.inference.trusted_config import add_trust
from triptych.utils.disk_usage import output_file
from triptych.utils.limits import EXTRAPOLATION
from triptych.utils.paths import resolve

CONVERT = """\
  triptych convert BLIP3o/BLIP3o-Model-8B models/blip3o --encoder eva.pt
  triptych convert models/blip3o/model.yaml published

An interrupted conversion resumes where it stopped. See docs/published_checkpoints.md. Any
--model.x=y flag of `triptych fit` may follow a model file."""
EXPORT = """\
  triptych export runs/tiny/stage2 --ema --out stage2.safetensors
  triptych export runs/tiny/rl --before asset:tiny/generation.safetensors --extrapolate 1.5
  triptych generate "a red circle" --from stage2.safetensors"""


def convert(arguments: list[str]) -> None:
    """Convert a published checkpoint to triptych's files, or a model file to the published form."""
    parser = command_parser(
        "convert",
        "Convert a published checkpoint to our files, or a model file to the published form.",
        CONVERT,
        model=False,
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folder or hub id of BLIP3-o, Qwen2.5-VL or a pixel decoder; those of SigLIP and of "
        "SANA together; or a model file (.yaml), which is written in the form of BLIP3-o",
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write")
    parser.add_argument(
        "--encoder",
        metavar="SOURCE",
        help="EVA tower, if published separately: a file, folder or hub id; default that of SOURCE",
    )
    parser.add_argument(
        "--decoder",
        metavar="SOURCE",
        help="pixel decoder, a folder or hub id; default that of SOURCE",
    )
    add_trust(parser)
    parsed, flags = parser.parse_known_args(arguments)
    to_published = parsed.source[0].endswith((".yaml", ".yml"))
    unknown = [flag for flag in flags if not (to_published and flag.startswith("--model."))]
    if unknown or (to_published and (parsed.encoder or parsed.decoder)):
        parser.error(f"unrecognized arguments: {' '.join(unknown) or '--encoder or --decoder'}")
    if to_published and parsed.source[1:]:
        parser.error(f"a model file is the only SOURCE; leave out {' '.join(parsed.source[1:])}")
    try:
        if to_published:
            from triptych.checkpoints.published.export import export
            from triptych.inference.loading import describe_model

            export(describe_model(parsed.source, flags, parsed.trust_class), parsed.target)
        else:
            from triptych.checkpoints.published import convert as conversion

            conversion.convert_published(
                parsed.source, parsed.target, encoder=parsed.encoder, decoder=parsed.decoder
            )
    except KeyboardInterrupt:  # 130: what a shell reports of a program that Ctrl-C ended
        parser.exit(130, "triptych: interrupted; the same command resumes where it stopped.\n")


def export(arguments: list[str]) -> None:
    """Write the weights of a training checkpoint for inference."""
    parser = command_parser(
        "export", "Write the weights of a training checkpoint for inference.", EXPORT, model=False
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint of a training run, a file or a folder",
    )
    parser.add_argument(
        "--out",
        type=output_file,
        default=Path("weights.safetensors"),
        metavar="FILE",
        help="weight file to write; default %(default)s",
    )
    parser.add_argument(
        "--ema", action="store_true", help="averaged weights; default the last weights"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="type of the weights in the file; default %(default)s",
    )
    parser.add_argument(
        "--before",
        metavar="FILE",
        help="weight file that the run started from, or asset:NAME; no default",
    )
    parser.add_argument(
        "--extrapolate",
        type=EXTRAPOLATION,
        metavar="W",
        help="share of the way from --before to the run's weights, beyond them above 1; default 1",
    )
    parsed = parse(parser, arguments)
    if (parsed.before is None) != (parsed.extrapolate is None):
        parser.error("--extrapolate goes from the weights of --before; give both")
    import torch

    from triptych.checkpoints.training_checkpoint import export_checkpoint

    export_checkpoint(
        parsed.checkpoint,
        parsed.out,
        parsed.ema,
        getattr(torch, parsed.dtype),
        before=None if parsed.before is None else resolve(parsed.before),
        extrapolate=1.0 if parsed.extrapolate is None else parsed.extrapolate,
    )
    print(f"{parsed.out}: --model.weights.LABEL={parsed.out} reads it")
