"""`triptych generate`, `edit` and `reconstruct`: images to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.cli import input_files
from triptych.cli.arguments import (
    add_generation,
    add_num_images,
    add_output,
    command_parser,
    parse,
)
from triptych.cli.input_files import InputRequest, images_at
from triptych.cli.jobs import jobs_of, run_jobs, settings_for
from triptych.cli.output_folder import ImageJob
from triptych.inference.generation_config import (
    DECODER_SETTINGS,
    EDIT_SETTINGS,
    GenerationConfig,
)
from triptych.utils.errors import UserError
from triptych.utils.prompt_files import read_input
from triptych.utils.text import clean_text

GENERATE = """\
  triptych generate "a red circle left of a blue square" -n 4 --seed 7 -o out/circle
  printf 'a red circle\\ntwo blue squares\\n' | triptych generate --prompts - -o out/lines
  echo '{"id": "star", "prompt": "a green star", "seed": 3}' | triptych generate --prompts -
  triptych generate "three red circles" --sampler heun --num-inference-steps 10 -o out/heun
  triptych generate "three red circles" --best-of 4 -o out/best

The folder gets a PNG file of each image, which stores its settings, results.jsonl and grid.png. The
same command resumes where it stopped: finished images are skipped."""

EDIT = """\
  triptych edit docs/images/samples.png "make the circle blue" -o out/edit
  echo '{"image": "docs/images/samples.png", "instruction": "add a star"}' | \
triptych edit --jsonl - -o out/edits

Only a model that was trained on edits follows instructions. Only one whose generator sees the image
keeps the rest of it, and takes --image-guidance-scale, such as 1.5, beside --guidance-scale."""

RECONSTRUCT = """\
  triptych reconstruct docs/images/samples.png -o out/reconstruct
  triptych reconstruct docs/images/samples.png --decoder-num-inference-steps 10 -o out/ten

out/reconstruct/grid.png shows each image next to its reconstruction."""


def generate(arguments: list[str]) -> None:
    """Generate images of prompts into a folder."""
    parser = command_parser("generate", "Generate images of prompts.", GENERATE)
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="text of the images to generate"
    )
    parser.add_argument(
        "--prompts",
        dest="file",
        metavar="FILE",
        help="file of prompts (.txt, .jsonl or .json), or - for standard input; default none",
    )
    add_num_images(parser)
    add_output(parser, "out/generate")
    add_generation(parser)
    parsed = parse(parser, arguments)
    if not parsed.prompts and parsed.file is None:
        parser.error("give a prompt, or --prompts FILE")
    content = "" if parsed.file is None else read_input(parsed.file)
    requests = input_files.read_prompts(parsed.prompts, parsed.file, content)
    clean_negative_prompt(parsed)

    def check(pipe: Any) -> None:
        pipe.check_prompts([*(request.text for request in requests), *negative_prompts(jobs)])

    def make(pipe: Any, batch: list[ImageJob], callback: Any) -> list:
        return pipe(
            [job.request["prompt"] for job in batch],
            seed=[job.request["seed"] for job in batch],
            batch_size=len(batch),
            callback_on_step_end=callback,
            **settings_for(batch[0]),
        ).images

    jobs = jobs_of(requests, parsed)
    stdin = content if parsed.file == "-" else None
    run_jobs("generate", jobs, parsed, check=check, make=make, stdin=stdin)


def edit(arguments: list[str]) -> None:
    """Edit images by an instruction, into a folder."""
    parser = command_parser("edit", "Edit images by an instruction.", EDIT)
    parser.add_argument(
        "given",
        nargs="*",
        metavar="IMAGE|FOLDER... INSTRUCTION",
        help="images to edit, or folders of them, and then the instruction",
    )
    parser.add_argument(
        "--jsonl",
        metavar="FILE",
        help='file of edits, {"image": ..., "instruction": ...} a line, or - for standard input; '
        "default none",
    )
    add_num_images(parser)
    add_output(parser, "out/edit")
    add_generation(parser, EDIT_SETTINGS)
    parsed = parse(parser, arguments)
    clean_negative_prompt(parsed)
    if (len(parsed.given) < 2) if parsed.jsonl is None else bool(parsed.given):
        parser.error("give images and then an instruction, or only --jsonl FILE")
    stdin = None
    if parsed.jsonl is None:
        *paths, instruction = parsed.given
        remedy = "say what to do with the image"
        instruction = input_files.require_text(instruction, "the instruction", remedy)
        files = [image for path in paths for image in images_at(path)]
        requests = [InputRequest(instruction, images=[image]) for image in files]
    else:
        content = read_input(parsed.jsonl)
        stdin = content if parsed.jsonl == "-" else None
        requests = input_files.read_edits(parsed.jsonl, content)
        if any(len(request.images) != 1 for request in requests) or not requests:
            raise UserError(f'every line of {parsed.jsonl} names one "image" to edit.')

    def check(pipe: Any) -> None:
        for settings in {GenerationConfig(**settings_for(job)) for job in jobs}:
            pipe.check_edits(settings)
        pipe.check_prompts([request.text for request in requests], with_image=True)
        pipe.check_prompts(negative_prompts(jobs))

    def make(pipe: Any, batch: list[ImageJob], callback: Any) -> list:
        return pipe.edit(
            [job.source for job in batch],
            prompt=[job.request["instruction"] for job in batch],
            seed=[job.request["seed"] for job in batch],
            batch_size=len(batch),
            callback_on_step_end=callback,
            **settings_for(batch[0]),
        ).images

    jobs = jobs_of(requests, parsed, "instruction")
    run_jobs("edit", jobs, parsed, check=check, make=make, stdin=stdin)


def reconstruct(arguments: list[str]) -> None:
    """Reconstruct images by encoder and decoder, into a folder."""
    parser = command_parser(
        "reconstruct",
        "Encode images to features and decode them again.",
        RECONSTRUCT,
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE|FOLDER", help="images to reconstruct, or folders"
    )
    add_output(parser, "out/reconstruct")
    add_generation(parser, DECODER_SETTINGS)
    parsed = parse(parser, arguments)
    parsed.num_images_per_prompt = 1
    files = [image for path in parsed.images for image in images_at(path)]
    requests = [InputRequest("", images=[image]) for image in files]

    def make(pipe: Any, batch: list[ImageJob], callback: Any) -> list:
        return pipe.reconstruct(
            [job.source for job in batch],
            seed=[job.request["seed"] for job in batch],
            batch_size=len(batch),
            **settings_for(batch[0]),
        ).images

    jobs = jobs_of(requests, parsed)
    for job in jobs:
        job.file = f"{Path(job.file).stem}-{job.source.stem}.png"
    run_jobs("reconstruct", jobs, parsed, check=lambda pipe: None, make=make)


def clean_negative_prompt(parsed: Any) -> None:
    """Clean the text of --negative-prompt, if it was given.

    Raises:
        UserError: the text is not valid model input.
    """
    if parsed.negative_prompt:
        parsed.negative_prompt = clean_text(parsed.negative_prompt, "--negative-prompt")


def negative_prompts(jobs: list[ImageJob]) -> list[str]:
    """Return the distinct negative prompts of the jobs."""
    return sorted(
        {job.request["negative_prompt"] for job in jobs if "negative_prompt" in job.request}
    )
