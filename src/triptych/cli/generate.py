"""`triptych generate`, `chat`, `edit` and `reconstruct`: what is given, checked and handed on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from triptych.cli import input_files
from triptych.cli.arguments import add_output, add_sampling, load, parse, parser_of
from triptych.cli.input_files import Request, existing, images_at
from triptych.cli.jobs import jobs_of, make_all, settings_for
from triptych.cli.output_folder import Job
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, IMAGES, PROBABILITY, SEED, STEPS, TEMPERATURE, TOKENS
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.prompt_files import read_input
from triptych.utils.text import clean_text

PICTURES = {*IMAGE_SUFFIXES, ".tif", ".tiff"}  # names that are meant as those of pictures

GENERATE = """\
  triptych generate "a red circle left of a blue square" -n 4 --seed 7 -o out/circle
  printf 'a red circle\\ntwo blue squares\\n' | triptych generate --prompts - -o out/lines
  echo '{"id": "star", "prompt": "a green star", "seed": 3}' | triptych generate --prompts -
  triptych generate "three red circles" --sampler heun --steps 10 --guidance 2 -o out/heun

The folder gets a PNG file a picture, with its settings inside, results.jsonl and grid.png. The
same command again goes on where it was stopped: what is done is not done again."""

CHAT = """\
  triptych chat docs/images/samples.png "how many shapes are there?"
  echo "what colour is the circle?" | triptych chat docs/images/samples.png
  triptych chat --jsonl - < /dev/null

Without a question, a conversation begins: /image FILE shows a picture, /reset begins anew, /quit
or Ctrl-D ends, Ctrl-C stops an answer. A JSON line is {"id": ..., "image": FILE, "question": ...},
or has "images", or "messages" as OpenAI's; its answer is printed as a JSON line."""

EDIT = """\
  triptych edit docs/images/samples.png "make the circle blue" -o out/edit
  echo '{"image": "docs/images/samples.png", "instruction": "add a star"}' | \
triptych edit --jsonl - -o out/edits

A model follows instructions only if it was trained on edits."""

RECONSTRUCT = """\
  triptych reconstruct docs/images/samples.png -o out/reconstruct
  triptych reconstruct docs/images/samples.png --steps 10 --seed 3 -o out/ten-steps

out/reconstruct/grid.png shows each picture beside what encoder and decoder make of it."""


def generate(arguments: list[str]) -> None:
    """Pictures for prompts: triptych generate "a photo of a red circle" -n 4 --seed 7 -o out"""
    parser = parser_of("generate", "Make pictures for prompts.", GENERATE)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument(
        "--prompts", dest="file", metavar="FILE", help=".txt, .jsonl or .json; - is stdin"
    )
    parser.add_argument("-n", "--number", type=IMAGES, default=1, help="pictures a prompt")
    parser.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    add_output(parser, "out/generate")
    add_sampling(parser)
    parsed, flags = parse(parser, arguments)
    if not parsed.prompts and parsed.file is None:
        parser.error("give a prompt, or --prompts FILE")
    content = "" if parsed.file is None else read_input(parsed.file)
    asked = input_files.read_prompts(parsed.prompts, parsed.file, content)
    if parsed.negative:
        parsed.negative = clean_text(parsed.negative, "--negative")

    def check(pipe: Any) -> None:
        negatives = {job.asked["negative"] for job in jobs if "negative" in job.asked}
        pipe.model.prompt_rows([*(request.text for request in asked), *sorted(negatives)])

    def make(pipe: Any, batch: list[Job], callback: Any) -> list:
        return pipe.generate(
            [job.asked["prompt"] for job in batch],
            seeds=[job.asked["seed"] for job in batch],
            batch_size=len(batch),
            callback=callback,
            **settings_for(batch[0]),
        )

    jobs = jobs_of(asked, parsed, flags)
    stdin = content if parsed.file == "-" else None  # for processes that read it again
    make_all("generate", arguments, jobs, parsed, flags, check, make, stdin)


def edit(arguments: list[str]) -> None:
    """A picture changed as you say: triptych edit picture.png "make the circle blue" -o out"""
    parser = parser_of("edit", "Change pictures as an instruction says.", EDIT)
    parser.add_argument("given", nargs="*", metavar="IMAGE|FOLDER... INSTRUCTION")
    parser.add_argument(
        "--jsonl", metavar="FILE", help='{"image": ..., "instruction": ...} a line; - is stdin'
    )
    parser.add_argument("-n", "--number", type=IMAGES, default=1, help="pictures an edit")
    add_output(parser, "out/edit")
    add_sampling(parser)
    parsed, flags = parse(parser, arguments)
    if (len(parsed.given) < 2) if parsed.jsonl is None else bool(parsed.given):
        parser.error("give pictures and then an instruction, or --jsonl FILE alone")
    stdin = None
    if parsed.jsonl is None:
        *pictures, instruction = parsed.given
        remedy = "say what to do with the picture"
        instruction = input_files.require_text(instruction, "the instruction", remedy)
        found = [image for picture in pictures for image in images_at(picture)]
        asked = [Request(instruction, images=[image]) for image in found]
    else:
        content = read_input(parsed.jsonl)
        stdin = content if parsed.jsonl == "-" else None
        asked = input_files.read_edits(parsed.jsonl, content)
        if any(len(request.images) != 1 for request in asked) or not asked:
            raise UserError(f'every line of {parsed.jsonl} names one "image" to edit.')

    def check(pipe: Any) -> None:
        pipe.model.prompt_rows([request.text for request in asked], pictured=True)

    def make(pipe: Any, batch: list[Job], callback: Any) -> list:
        return pipe.edit(
            [job.source for job in batch],
            [job.asked["instruction"] for job in batch],
            seeds=[job.asked["seed"] for job in batch],
            batch_size=len(batch),
            callback=callback,
            **settings_for(batch[0]),
        )

    jobs = jobs_of(asked, parsed, flags, "instruction")
    make_all("edit", arguments, jobs, parsed, flags, check, make, stdin)


def reconstruct(arguments: list[str]) -> None:
    """Pictures through encoder and decoder: triptych reconstruct picture.png -o out"""
    parser = parser_of("reconstruct", "What the image features keep of pictures.", RECONSTRUCT)
    parser.add_argument("pictures", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--steps", type=STEPS, help="of the decoder; default: as the model says")
    add_output(parser, "out/reconstruct")
    parsed, flags = parse(parser, arguments)
    parsed.number = 1
    found = [image for picture in parsed.pictures for image in images_at(picture)]
    asked = [Request("", images=[image]) for image in found]

    def make(pipe: Any, batch: list[Job], callback: Any) -> list:
        seeds = [job.asked["seed"] for job in batch]
        return pipe.reconstruct([job.source for job in batch], seeds, parsed.steps, len(batch))

    jobs = jobs_of(asked, parsed, flags)
    for job in jobs:
        job.file = f"{Path(job.file).stem}-{job.source.stem}.png"
    make_all("reconstruct", arguments, jobs, parsed, flags, lambda pipe: None, make)


def chat(arguments: list[str]) -> None:
    """An answer about a picture, or a conversation: triptych chat picture.png "what is it?" """
    parser = parser_of("chat", "Ask about pictures, or talk about them.", CHAT)
    parser.add_argument("given", nargs="*", metavar="IMAGE... QUESTION")
    parser.add_argument("--jsonl", metavar="FILE", help="questions, one a line; - is stdin")
    parser.add_argument("--batch-size", type=BATCH, default=16, help="of --jsonl")
    parser.add_argument(
        "--max-tokens", type=TOKENS, default=256, help="of an answer; default %(default)s"
    )
    parser.add_argument(
        "--temperature",
        type=TEMPERATURE,
        default=0.0,
        help="0, the default, is the likeliest answer",
    )
    parser.add_argument("--top-p", type=PROBABILITY, default=1.0)
    parser.add_argument("--seed", type=SEED, help="of answers that are drawn")
    parsed, flags = parse(parser, arguments)
    if parsed.jsonl and parsed.given:
        parser.error("give pictures and a question, or --jsonl FILE alone")
    options = {
        "max_new_tokens": parsed.max_tokens,
        "temperature": parsed.temperature,
        "top_p": parsed.top_p,
        "seed": parsed.seed,
    }
    from triptych.cli import chat as talking

    if parsed.jsonl:
        lines = talking.read_questions(parsed.jsonl)
        if lines:
            talking.answer_lines(load(parsed, flags), lines, parsed.batch_size, options)
        return
    pictures, question = _pictures_and_question(parsed.given, parser)
    if question is not None:
        question = input_files.require_text(question, "the question", "ask something")
    for picture in pictures:
        existing(picture, "")
    if question is None:
        talking.converse(load(parsed, flags), pictures, options)
        return
    for picture in pictures:
        talking.readable(picture)
    message = {"role": "user", "content": [*pictures_of(pictures), question]}
    print(load(parsed, flags).chat([message], **options))


def pictures_of(paths: list[str]) -> list[dict[str, str]]:
    """Parts of a message."""
    return [{"type": "image", "image": path} for path in paths]


def _pictures_and_question(given: list[str], parser: Any) -> tuple[list[str], str | None]:
    """What is a file, or is called as one, is a picture; what is not, the question."""
    pictures = [g for g in given if Path(g).suffix.lower() in PICTURES or os.path.isfile(g)]
    questions = [g for g in given if g not in pictures]
    if len(questions) > 1 or (questions and questions[0] != given[-1]):
        parser.error(f"no picture is called {questions[0]!r}; give pictures, then one question")
    return pictures, questions[0] if questions else None
