"""Flags that several commands share, and loading of the model that they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.inference.argument_names import remedy
from triptych.inference.generation_config import (
    FIELDS,
    PROMPT_SETTINGS,
    SETTINGS,
    help_of,
    limit_of,
)
from triptych.inference.trusted_config import add_trust
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, PORT, PROCESSES, SEED, Interval, OneOf, Text

METAVARS = {OneOf: "NAME", Interval: "LOW,HIGH", Text: "TEXT"}
"""Metavar of the values of a limit, by its class."""
SHORTER = {"num_images_per_prompt": "--num-images"}
"""Flag of a field of `GenerationConfig`, where it differs from the field's name."""
PRESET = "tiny"
"""Default of --from."""
DTYPES = ("float32", "bfloat16", "float16")


def command_parser(
    name: str, description: str, examples: str, model: bool = True
) -> argparse.ArgumentParser:
    """Make the parser of a command.

    Args:
        description: one paragraph about the command.
        examples: command lines with notes below them, which end the help.
        model: whether to add the flags that name a model, see `add_model_arguments`.
    """
    flags = "Any --model.x=y flag of `triptych fit` may follow.\n\n" if model else ""
    parser = argparse.ArgumentParser(
        prog=f"triptych {name}",
        description=description,
        epilog=f"{flags}examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if model:
        add_model_arguments(parser)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a model and configure its execution; see `load_pipeline`."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--from",
        dest="source",
        default=PRESET,
        metavar="SOURCE",
        help="model to load: a preset, a folder of `triptych convert`, a run's folder, a "
        "checkpoint or a weight file; default %(default)s",
    )
    model.add_argument(
        "--ema",
        action="store_true",
        help="averaged weights of a checkpoint; default its last weights",
    )
    model.add_argument(
        "--config",
        action="append",
        metavar="YAML",
        help="model file to load in place of --from; repeatable, later files win; default none",
    )
    add_trust(model)
    model.add_argument(
        "--device",
        metavar="NAME",
        help="device to compute on, such as cpu or cuda:1; default the first GPU, if there is one",
    )
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the weights; default bfloat16 on a GPU and float32 on the CPU",
    )
    model.add_argument(
        "--low-memory",
        action="store_true",
        help="CPU offloading: a network is on the device only while it computes; default off",
    )
    model.add_argument(
        "--quantize",
        choices=["4bit", "8bit"],
        help="precision of the language model's weights, by bitsandbytes; default that of --dtype",
    )


def add_generation(parser: argparse.ArgumentParser, names: Sequence[str] = PROMPT_SETTINGS) -> None:
    """Add a flag for each of these fields of `GenerationConfig`, by default all of a prompt."""
    group = parser.add_argument_group("generation (default of each: the model's own)")
    for name in names:
        limit = limit_of(name)
        number = "N" if getattr(limit, "whole", False) else "X"
        group.add_argument(
            flag_of(name),
            type=str if isinstance(limit, OneOf) else limit,  # refused by the pipeline
            metavar=METAVARS.get(type(limit), number),
            help=f"{help_of(name)}, {limit}" if isinstance(limit, OneOf) else help_of(name),
        )


def add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """Add --host, --port and --allow-host.

    Args:
        port: default of --port.
    """
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on, 0.0.0.0 being every one; default %(default)s",
    )
    parser.add_argument(
        "--port",
        type=PORT,
        default=port,
        metavar="N",
        help="port to listen on, 0 being any free one; default %(default)s",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name in Host headers, and of pages that may send requests, * being every "
        "one; repeatable; default none",
    )


def add_num_images(parser: argparse.ArgumentParser, default: int = 1) -> None:
    """Add -n/--num-images."""
    name = "num_images_per_prompt"
    parser.add_argument(
        "-n",
        flag_of(name),
        dest=name,
        type=limit_of(name),
        default=default,
        metavar="N",
        help=f"{help_of(name)}; default %(default)s",
    )


def flag_of(name: str) -> str:
    """Return the flag of a field of `GenerationConfig`."""
    return SHORTER.get(name, f"--{name.replace('_', '-')}")


def generation_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the generation settings that were given as flags, by field name."""
    given = {name: getattr(parsed, name, None) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def _suggestion(parser: argparse.ArgumentParser, unknown: list[str]) -> str:
    """Suggest our flag for one that is named as in other libraries or older versions."""
    fields = [name for name in FIELDS if flag_of(name) in parser.format_help()]
    for flag in unknown:
        name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        advice = remedy(name, fields)
        if flag.startswith("--") and advice.startswith("use "):
            return f"; use {flag_of(advice.removeprefix('use '))}"
    return ""


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add --out, --seed, --batch-size, --part, --devices and --num-nodes."""
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"folder to write; default {folder}/TEXT-HASH, which depends on all other arguments",
    )
    add_parts(parser, "seed of the first image, which increases by one for each further image")


def add_parts(parser: argparse.ArgumentParser, seed: str, batch_size: int = 16) -> None:
    """Add --seed, --batch-size, --part, --devices and --num-nodes.

    Args:
        seed: help text of --seed.
        batch_size: default of --batch-size.
    """
    parser.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help=f"{seed}; default %(default)s"
    )
    add_batch_size(parser, "number of images generated at once", batch_size)
    parser.add_argument(
        "--part",
        type=part,
        default=(0, 1),
        metavar="K/N",
        help="part of the images to generate: the K-th of N equal ones; default 1/1, all images",
    )
    add_devices(parser)


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add --devices and --num-nodes."""
    parser.add_argument(
        "--devices",
        type=PROCESSES,
        default=1,
        metavar="N",
        help="number of GPUs, or of CPU processes, of each machine; default %(default)s",
    )
    parser.add_argument(
        "--num-nodes",
        type=PROCESSES,
        default=1,
        metavar="N",
        help="number of machines with --devices each, started by torchrun or SLURM; default "
        "%(default)s",
    )


def add_batch_size(parser: argparse.ArgumentParser, text: str, default: int) -> None:
    """Add --batch-size."""
    parser.add_argument(
        "--batch-size",
        type=BATCH,
        default=default,
        metavar="N",
        help=f"{text}; default %(default)s",
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments; `overrides` of the result are the --model.x=y flags, if allowed."""
    parsed, flags = parser.parse_known_intermixed_args(arguments)
    has_model = "quantize" in parsed  # a flag of `add_model_arguments`
    unknown = [flag for flag in flags if not (has_model and flag.startswith("--model."))]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(parser, unknown)}")
    if has_model and parsed.config and (parsed.ema or parsed.source != PRESET):
        parser.error("--config names the model, and so do --from and --ema; give one of them.")
    parsed.overrides = flags
    return parsed


def model_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the given flags that name the model, for the metadata of images and reports."""
    from triptych.utils.png_metadata import shown_name  # imports Pillow

    named: dict[str, Any] = {
        "model": list(map(shown_name, parsed.config))
        if parsed.config
        else shown_name(parsed.source)
    }
    pairs = (flag.partition("=") for flag in parsed.overrides)
    given = [f"{name}={shown_name(value)}" for name, _, value in pairs]
    more = {"ema": parsed.ema, "flags": given, "dtype": parsed.dtype, "quantize": parsed.quantize}
    return named | {key: value for key, value in more.items() if value}


def load_pipeline(parsed: argparse.Namespace, device: Any = None):
    """Load the named model. Imports torch, which takes seconds.

    Args:
        device: torch device that replaces --device.

    Raises:
        UserError: the model or the device does not exist.
    """
    from triptych.inference.pipeline import UnifiedPipeline

    memory = {"enable_model_cpu_offload": parsed.low_memory, "quantize": parsed.quantize}
    return UnifiedPipeline.from_pretrained(
        parsed.config or parsed.source,
        device=device or device_of(parsed),
        dtype=parsed.dtype,
        ema=parsed.ema,
        overrides=parsed.overrides,
        trust_class=parsed.trust_class,
        **{key: value for key, value in memory.items() if value},
    )


def device_of(parsed: argparse.Namespace) -> Any:
    """Return the torch device of --device, by default the first GPU if there is one, else the CPU.

    Raises:
        UserError: the device does not exist.
    """
    import torch

    try:
        device = torch.device(parsed.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"there is no kind of device {parsed.device!r}; give cpu or cuda.") from (
            error
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {parsed.device}; give another --device, or cpu.")
    return device


def part(text: str) -> tuple[int, int]:
    """Parse "2/8" to (1, 8), with an index that counts from 0."""
    number, _, numbers = text.partition("/")
    try:
        k, n = PROCESSES(number), PROCESSES(numbers)
    except argparse.ArgumentTypeError:
        k, n = 1, 0
    if k > n:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not K/N with K from 1 to N, such as 2/8, and N at most "
            f"{PROCESSES.most:,}"
        )
    return k - 1, n
