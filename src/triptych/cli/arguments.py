"""The flags that the commands share, and the model that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triptych.inference.trusted_config import add_trust
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, PROCESSES, SCALE, SEED, STEPS
from triptych.utils.png_metadata import shown_name

# Settings of a picture that are the same flag, key of a JSON line and argument of the pipeline.
SETTINGS = ("steps", "guidance", "decoder_steps", "decoder_guidance", "sampler", "decoder_sampler")


def parser_of(
    name: str, description: str, examples: str, model: bool = True
) -> argparse.ArgumentParser:
    """A parser, with the flags that say which model, and where it runs, where there is a model."""
    flags = "Any --model.x=y flag of `triptych fit` may follow.\n\n" if model else ""
    parser = argparse.ArgumentParser(
        prog=f"triptych {name}",
        description=description,
        epilog=f"{flags}examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if model:
        _add_model(parser.add_argument_group("which model"))
    return parser


def _add_model(model: argparse._ArgumentGroup) -> None:
    model.add_argument(
        "--from",
        dest="source",
        default="tiny",
        metavar="SOURCE",
        help="preset, folder of `triptych convert`, run's folder, checkpoint or weight file; "
        "default %(default)s",
    )
    model.add_argument("--ema", action="store_true", help="a checkpoint's averaged weights")
    model.add_argument(
        "--config",
        action="append",
        metavar="YAML",
        help="model file, in place of --from; later ones win",
    )
    add_trust(model)
    model.add_argument("--device", help="such as cpu or cuda:1; default the first GPU if any")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights")
    model.add_argument(
        "--low-memory", action="store_true", help="panels are on the device only while they work"
    )
    model.add_argument("--quantize", choices=["4bit", "8bit"], help="the language model's weights")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The flags of pictures that are generated."""
    making = parser.add_argument_group("how pictures are made (default: as the model says)")
    making.add_argument("--steps", type=STEPS, help="of the generator of features")
    making.add_argument("--guidance", type=SCALE, help="how closely it follows the text")
    making.add_argument("--sampler", metavar="NAME", help="how it integrates: euler, heun, ...")
    making.add_argument("--decoder-steps", type=STEPS, help="of the decoder")
    making.add_argument("--decoder-guidance", type=SCALE)
    making.add_argument("--decoder-sampler", metavar="NAME")


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    """The flags of what is written, and by how many."""
    parser.add_argument(
        "-o", "--out", type=Path, help=f"folder; default one in {folder} for each thing asked"
    )
    add_parts(parser, "of the first picture; then +1")


def add_parts(parser: argparse.ArgumentParser, seed: str) -> None:
    """The flags of how much is made at once, and by how many; `seed` says what that is of."""
    parser.add_argument("--seed", type=SEED, default=0, help=seed)
    parser.add_argument(
        "--batch-size", type=BATCH, default=16, help="pictures at once; default %(default)s"
    )
    shards = parser.add_mutually_exclusive_group()
    shards.add_argument(
        "--shard", type=shard, default=(0, 1), metavar="K/N", help="make the K-th of N parts alone"
    )
    shards.add_argument(
        "--processes", type=PROCESSES, default=1, metavar="N", help="N shards at once, a GPU each"
    )


def parse(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """What was given, and the --model.x=y flags."""
    parsed, flags = parser.parse_known_intermixed_args(arguments)
    named = "source" in parsed
    unknown = [flag for flag in flags if not (named and flag.startswith("--model."))]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if named and parsed.config and (parsed.ema or parsed.source != "tiny"):
        parser.error("--config names the model, and so do --from and --ema; give one of them.")
    return parsed, flags


def model_of(parsed: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What names the model, for the settings of a picture; only what was given."""
    named: dict[str, Any] = {
        "model": list(map(shown_name, parsed.config))
        if parsed.config
        else shown_name(parsed.source)
    }
    given = [f"{name}={shown_name(value)}" for name, _, value in (f.partition("=") for f in flags)]
    more = {"ema": parsed.ema, "flags": given, "dtype": parsed.dtype, "quantize": parsed.quantize}
    return named | {key: value for key, value in more.items() if value}


def load(parsed: argparse.Namespace, flags: list[str]):
    """The pipeline; torch is imported here, as it takes seconds.

    Raises:
        UserError: there is no such model or device.
    """
    import torch

    from triptych.inference.pipeline import UnifiedPipeline

    try:
        device = torch.device(parsed.device) if parsed.device else None
    except RuntimeError as error:
        raise UserError(f"there is no kind of device {parsed.device!r}; give cpu or cuda.") from (
            error
        )
    if device is not None and device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"there is no GPU {parsed.device}; give another --device, or cpu.")
    memory = {"low_memory": parsed.low_memory, "quantize": parsed.quantize}
    return UnifiedPipeline.from_pretrained(
        parsed.config or parsed.source,
        device=device,
        dtype=parsed.dtype,
        ema=parsed.ema,
        overrides=flags,
        trust_class=parsed.trust_class,
        **{key: value for key, value in memory.items() if value},
    )


def shard(text: str) -> tuple[int, int]:
    """ "2/8" as (1, 8): counted from 0."""
    part, _, parts = text.partition("/")
    try:
        k, n = PROCESSES(part), PROCESSES(parts)
    except argparse.ArgumentTypeError:
        k, n = 1, 0
    if k > n:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not K/N with K from 1 to N, such as 2/8, and N at most "
            f"{PROCESSES.most:,}"
        )
    return k - 1, n
