"""`triptych data features`: image features of shards, computed once."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import add_batch_size, add_devices, command_parser, parse
from triptych.cli.data.arguments import add_folder
from triptych.utils.limits import PROCESSES

EXAMPLES = """\
  triptych data features data/photos --from blip3o_8b
  triptych data features data/photos --encoder vae --devices 2

The same command resumes where it stopped."""


def features(arguments: list[str]) -> None:
    """Compute the image features of shards."""
    description = (
        "Compute the image features of shards once, by a frozen encoder. Training reads them "
        "from\nFOLDER/features if they are of the model's encoder, and then neither decodes nor "
        "encodes target images."
    )
    parser = command_parser("data features", description, EXAMPLES)
    add_folder(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the features to write; default FOLDER/features",
    )
    parser.add_argument(
        "--encoder",
        choices=["clip", "vae"],
        default="clip",
        help="encoder to run, clip being the image encoder; default %(default)s",
    )
    parser.add_argument(
        "--storage-dtype",
        choices=["bf16", "fp32", "int8"],
        default="bf16",
        help="type of the stored features, whose error is in the manifest; default %(default)s",
    )
    parser.add_argument(
        "--image-backend",
        choices=["torchvision", "pillow"],
        default="torchvision",
        help="decoder of image files, as in training; pillow is the published transform, which "
        "drops alpha channels; default %(default)s",
    )
    add_batch_size(parser, "number of images that each process encodes at once", 32)
    parser.add_argument(
        "--workers",
        type=PROCESSES,
        metavar="N",
        help="number of decoding processes for each device; default none",
    )
    add_devices(parser)
    parser.add_argument(
        "--precision",
        default="32-true",
        metavar="NAME",
        help="precision of Lightning's Trainer, such as bf16-mixed; default %(default)s",
    )
    parsed = parse(parser, arguments)
    from triptych.cli.data.feature_extraction import extract  # imports torch

    extract(parsed)
