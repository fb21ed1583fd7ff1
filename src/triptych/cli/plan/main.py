"""`triptych plan`: memory, time and traffic of a training run, before it starts."""

from __future__ import annotations

import json

from triptych.cli.arguments import command_parser
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, COUNT, PORTION

EXAMPLES = """\
  triptych plan --preset blip3o_8b --stage stage2 --hardware fsdp2 --devices 8 --gpu h100
  triptych plan --preset blip3o_4b --stage stage2 --hardware ddp --devices 8 --gpu a100-80 --json
  triptych plan --preset tiny --stage stage2 --batch-size 256

A run that does not fit the card ends with status 1 and the nearest setting that fits.
See docs/distributed.md."""


def plan(arguments: list[str]) -> None:
    """Print the plan of a run."""
    parser = command_parser(
        "plan",
        "Plan a training run: memory of a GPU, time, traffic, and which ways to run it fit.",
        EXAMPLES,
        model=False,
    )
    parser.add_argument("--preset", required=True, help="preset to train; required")
    parser.add_argument("--stage", required=True, help="stage to train; required")
    parser.add_argument(
        "--hardware",
        default="single",
        metavar="H",
        help="file of conf/trainer, such as ddp or fsdp2; default %(default)s",
    )
    parser.add_argument(
        "--devices", type=COUNT, default=1, help="number of GPUs of the run; default %(default)s"
    )
    parser.add_argument(
        "--gpu", default="h100", metavar="NAME", help="card, such as a100-40; default %(default)s"
    )
    parser.add_argument(
        "--batch-size", type=BATCH, help="samples of one GPU in a step; default that of the recipe"
    )
    parser.add_argument(
        "--stories-ratio",
        type=PORTION,
        metavar="R",
        help="share of the samples that are conversations with images; default that of the stage's "
        "own data, which conf/data names",
    )
    parser.add_argument(
        "--json", action="store_true", help="whether to print JSON; default a table"
    )
    parsed, flags = parser.parse_known_args(arguments)
    if unknown := [flag for flag in flags if not flag.startswith("--model.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    from triptych.training.gpu_specs import gpu_of  # imports torch

    gpu = gpu_of(parsed.gpu)
    from triptych.cli.plan.report import as_json, as_text, make_plan
    from triptych.cli.plan.request import read_request

    made = make_plan(
        read_request(
            parsed.preset,
            parsed.stage,
            parsed.hardware,
            devices=parsed.devices,
            gpu=gpu,
            batch_size=parsed.batch_size,
            stories=parsed.stories_ratio,
            overrides=["--model.build_decoder=false", *flags],
        )
    )
    print(json.dumps(as_json(made)) if parsed.json else as_text(made), flush=True)
    if (problem := made.refusal()) is not None:
        raise UserError(problem)
