"""`triptych chat`: questions and conversations on a terminal, by a pipe, or as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from triptych.cli.answer_images import AnswerImages
from triptych.cli.arguments import (
    add_batch_size,
    add_generation,
    command_parser,
    generation_of,
    load_pipeline,
    parse,
)
from triptych.cli.input_files import existing_image, read_id, require_text
from triptych.utils.disk_usage import output_folder
from triptych.utils.documents import read_standard_line
from triptych.utils.errors import UserError
from triptych.utils.image_urls import is_url
from triptych.utils.limits import ANSWER_IMAGES, PROBABILITY, SEED, TEMPERATURE, TOKENS
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.prompt_files import read_input, read_objects
from triptych.utils.standard_streams import output_lost

log = logging.getLogger(__name__)

IMAGE_ENDINGS = {*IMAGE_SUFFIXES, ".tif", ".tiff"}
"""Suffixes of arguments that are taken for images, even if the file is missing."""
EXAMPLES = """\
  triptych chat docs/images/samples.png "how many shapes are there?"
  echo "what colour is the circle?" | triptych chat docs/images/samples.png
  triptych chat "draw a red circle" -o out/chat
  triptych chat --jsonl - < /dev/null

Without a question, a conversation starts: /image FILE shows an image, /reset restarts, /quit or
Ctrl-D ends, Ctrl-C stops an answer. A JSON line is {"id": ..., "image": FILE, "question": ...}, or
has "images", or "messages" as OpenAI's; its answer is printed as a JSON line. Images in an answer
are saved to files, whose paths are printed."""

KEYS = {"id", "question", "image", "images", "messages"}
"""Keys of a JSON line."""
HELP = "/image FILE shows an image, /reset restarts, /quit or Ctrl-D ends."


def chat(arguments: list[str]) -> None:
    """Answer a question about images, or hold a conversation."""
    parser = command_parser("chat", "Answer questions about images.", EXAMPLES)
    parser.add_argument(
        "given",
        nargs="*",
        metavar="IMAGE... QUESTION",
        help="images to show, and a question; without a question a conversation starts",
    )
    parser.add_argument(
        "--jsonl",
        metavar="FILE",
        help="file of questions, one a line, or - for standard input; default none",
    )
    add_batch_size(parser, "number of questions of --jsonl answered at once", 16)
    parser.add_argument(
        "--max-tokens",
        type=TOKENS,
        default=256,
        metavar="N",
        help="maximum number of tokens of an answer; default %(default)s",
    )
    parser.add_argument(
        "--temperature",
        type=TEMPERATURE,
        default=0.0,
        metavar="X",
        help="softmax temperature of the sampling, 0 being greedy decoding; default %(default)s",
    )
    parser.add_argument(
        "--top-p",
        type=PROBABILITY,
        default=1.0,
        metavar="X",
        help="probability mass of the tokens that are sampled from; default %(default)s",
    )
    parser.add_argument(
        "--seed", type=SEED, metavar="N", help="seed of the sampling; default a random one"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_folder,
        default=Path("out/chat"),
        metavar="FOLDER",
        help="folder of the images in answers, made with the first one; default %(default)s",
    )
    parser.add_argument(
        "--max-images",
        type=ANSWER_IMAGES,
        metavar="N",
        help="maximum number of images in an answer; default the model's own",
    )
    add_generation(parser)
    parsed = parse(parser, arguments)
    if parsed.jsonl and parsed.given:
        parser.error("give images and a question, or only --jsonl FILE")
    options = {
        "max_new_tokens": parsed.max_tokens,
        "temperature": parsed.temperature,
        "top_p": parsed.top_p,
        "seed": parsed.seed,
        "max_images": parsed.max_images,
        **generation_of(parsed),
    }
    folder = AnswerImages(parsed.output)
    if parsed.jsonl:
        lines = read_questions(parsed.jsonl)
        if lines:
            answer_lines(
                load_pipeline(parsed), lines, parsed.batch_size, options=options, folder=folder
            )
        return
    images, question = _images_and_question(parsed.given, parser)
    if question is not None:
        question = require_text(question, "the question", "ask something")
    for image in images:
        existing_image(image, "")
    if question is None:
        converse(load_pipeline(parsed), images, options, folder)
        return
    for image in images:
        require_readable(image)
    message = {"role": "user", "content": [*images_of(images), question]}
    for part in load_pipeline(parsed).chat([message], **options).content or [""]:
        print(part if isinstance(part, str) else folder.save(part))


def images_of(paths: list[str]) -> list[dict[str, str]]:
    """Return images as content parts of a message."""
    return [{"type": "image", "image": path} for path in paths]


def _images_and_question(given: list[str], parser: Any) -> tuple[list[str], str | None]:
    """Split the arguments into images, by suffix or existing file, and the question."""
    images = [g for g in given if Path(g).suffix.lower() in IMAGE_ENDINGS or os.path.isfile(g)]
    questions = [g for g in given if g not in images]
    if len(questions) > 1 or (questions and questions[0] != given[-1]):
        parser.error(f"no image is called {questions[0]!r}; give images, then one question")
    return images, questions[0] if questions else None


def require_readable(image: str) -> None:
    """Decode the image to check it before the model is loaded.

    Raises:
        UserError: the image cannot be read.
    """
    from triptych.utils.images import open_image

    open_image(image)


# --- JSON lines -----------------------------------------------------------------------------------


def read_questions(file: str) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Read JSON lines as tuples of "FILE:LINE", id (by default the line number) and messages.

    Raises:
        UserError: a line has no question, names a missing image, or repeats the id of another.
    """
    lines: list[tuple[str, str, list[dict[str, Any]]]] = []
    places: dict[str, str] = {}
    warned: set[str] = set()
    for where, line in read_objects(file, read_input(file)):
        name = read_id(line, where) or re.search(r"\d+$", where)[0]
        if name in places:
            raise UserError(f"{where}: the id {name!r} is that of {places[name]} too.")
        places[name] = where
        lines.append((where, name, _messages(line, where)))
        _warn_of_unread_keys(line, where, warned)
    return lines


def _messages(line: dict[str, Any], where: str) -> list[dict[str, Any]]:
    if isinstance(line.get("messages"), list):
        return line["messages"]
    if not isinstance(line.get("question"), str):
        raise UserError(f'{where} has no "question" and no "messages"; write one of them.')
    question = require_text(line["question"], f"{where}: the question", "ask something")
    images = line.get("images", line.get("image"))
    images = images if isinstance(images, list) else [] if images is None else [images]
    parts = [_image_part(image, where) for image in images]
    return [{"role": "user", "content": [*parts, question]}]


def _image_part(image: Any, where: str) -> dict[str, Any]:
    """Return a path or data URL as a content part; other URLs are refused when they are read."""
    if isinstance(image, str) and is_url(image):
        return {"type": "image_url", "image_url": {"url": image}}
    return {"type": "image", "image": str(existing_image(image, f"{where}: "))}


def _warn_of_unread_keys(line: dict[str, Any], where: str, warned: set[str]) -> None:
    """Warn once of each key that is not read: a misspelled one would drop an image silently."""
    for key in sorted({*line} - KEYS - warned):
        log.warning("%s: %r is not read; a line has %s", where, key[:60], ", ".join(sorted(KEYS)))
        warned.add(key)


def answer_lines(
    pipe: Any,
    lines: list[tuple[str, str, list[dict[str, Any]]]],
    batch_size: int,
    *,
    options: dict[str, Any],
    folder: AnswerImages,
) -> None:
    """Print the answers as JSON lines in order, batch by batch.

    An answer with images has them as "content", texts and {"image": PATH}, which a line of
    "messages" may have again.

    Raises:
        UserError: a conversation is malformed or too long, or an image is unreadable.
    """
    from triptych.inference.chat_messages import read_messages
    from triptych.prompts import PromptError

    seed = options["seed"]
    for at in range(0, len(lines), batch_size):
        if output_lost():
            return
        batch = lines[at : at + batch_size]
        conversations = []
        for where, _, messages in batch:
            try:
                conversations.append(read_messages(messages))
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
        first = {} if seed is None else {"seed": seed + at}
        try:
            answers = pipe.chat_batch(conversations, **{**options, **first})
        except PromptError as error:
            raise UserError(f"{batch[error.conversation][0]}: {error}") from error
        for (_, name, _), answer in zip(batch, answers, strict=True):
            output = {"id": name, "answer": answer.text, "finish_reason": answer.finish_reason}
            if answer.images:
                output["content"] = folder.parts(answer.content)
            print(json.dumps(output, ensure_ascii=False), flush=True)


# --- a conversation -------------------------------------------------------------------------------


def converse(pipe: Any, images: list[str], options: dict[str, Any], folder: AnswerImages) -> None:
    """Read questions and stream answers until the input ends.

    From a pipe, every line is a question, and an error ends the command.

    Raises:
        UserError: a line of a pipe is invalid.
    """
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    messages: list[dict[str, Any]] = []
    shown: list[Any] = [{"type": "image", "image": image} for image in images]
    while not output_lost() and (line := _read_line(interactive)) is not None:
        try:
            if not line:
                continue
            if not interactive and line.startswith("{") and line.endswith("}"):
                raise UserError("a line of the input is JSON; give JSON lines by --jsonl -.")
            if line == "/quit":
                return
            if line == "/reset":
                messages = []
                shown = [{"type": "image", "image": image} for image in images]
            elif line.startswith("/image "):
                file = existing_image(line.removeprefix("/image ").strip(), "")
                require_readable(str(file))
                shown.append({"type": "image", "image": str(file)})
            elif line.startswith("/") and not os.path.exists(line):
                raise UserError(f"{line.split()[0]} is not a command. {HELP}")
            else:
                question = {"role": "user", "content": [*shown, line]}
                answer = _answer(pipe, [*messages, question], options, folder)
                if answer:
                    messages += [question, {"role": "assistant", "content": answer}]
                    shown = []
        except UserError as error:
            if not interactive:
                raise
            print(f"triptych: {error}", file=sys.stderr)


def _read_line(interactive: bool) -> str | None:
    """Read the next line; return None at the end. Ctrl-C discards the typed line."""
    while True:
        try:
            if interactive:
                return input("> ").strip()
            line = read_standard_line()
            return None if line is None else line.strip()
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\nCtrl-D ends.", file=sys.stderr)


def _answer(
    pipe: Any, messages: list[dict[str, Any]], options: dict[str, Any], folder: AnswerImages
) -> list[Any]:
    """Print an answer while it is generated, an image as the path of its file.

    Returns:
        Its content, possibly cut short by Ctrl-C.
    """
    content: list[Any] = []
    chunks = pipe.chat(messages, stream=True, **options)
    try:
        for chunk in chunks:
            follows_text = bool(content) and isinstance(content[-1], str)
            if isinstance(chunk, str):
                print(chunk, end="", flush=True)
                if follows_text:
                    content[-1] += chunk
                    continue
            else:
                print("\n" * follows_text + str(folder.save(chunk)), flush=True)
            content.append(chunk)
    except KeyboardInterrupt:
        pass
    finally:
        chunks.close()
    if not content or isinstance(content[-1], str):
        print(flush=True)
    return content
