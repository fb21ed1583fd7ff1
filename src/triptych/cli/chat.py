"""`triptych chat`: conversations on a terminal, through a pipe, or as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from triptych.cli.arguments import add_batch_size, command_parser, load_pipeline, parse
from triptych.cli.input_files import existing_image, read_id, require_text
from triptych.utils.documents import read_standard_line
from triptych.utils.errors import UserError
from triptych.utils.image_urls import is_url
from triptych.utils.limits import PROBABILITY, SEED, TEMPERATURE, TOKENS
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.prompt_files import read_input, read_objects
from triptych.utils.standard_streams import output_lost

log = logging.getLogger(__name__)

IMAGES = {*IMAGE_SUFFIXES, ".tif", ".tiff"}  # names that are meant as those of images
EXAMPLES = """\
  triptych chat docs/images/samples.png "how many shapes are there?"
  echo "what colour is the circle?" | triptych chat docs/images/samples.png
  triptych chat --jsonl - < /dev/null

Without a question, a conversation begins: /image FILE shows an image, /reset begins anew, /quit
or Ctrl-D ends, Ctrl-C stops an answer. A JSON line is {"id": ..., "image": FILE, "question": ...},
or has "images", or "messages" as OpenAI's; its answer is printed as a JSON line."""

KEYS = {"id", "question", "image", "images", "messages"}
"""Keys of a JSON line."""
HELP = "/image FILE shows an image, /reset begins anew, /quit or Ctrl-D ends."


def chat(arguments: list[str]) -> None:
    """An answer about an image, or a conversation: triptych chat image.png "what is it?" """
    parser = command_parser("chat", "Ask about images, or talk about them.", EXAMPLES)
    parser.add_argument(
        "given",
        nargs="*",
        metavar="IMAGE... QUESTION",
        help="images to show and a question; without a question a conversation begins",
    )
    parser.add_argument(
        "--jsonl", metavar="FILE", help="file of questions, one a line; - is standard input"
    )
    add_batch_size(parser, "number of questions of --jsonl answered at once", 16)
    parser.add_argument(
        "--max-tokens",
        type=TOKENS,
        default=256,
        metavar="N",
        help="largest number of tokens of an answer; default %(default)s",
    )
    parser.add_argument(
        "--temperature",
        type=TEMPERATURE,
        default=0.0,
        metavar="X",
        help="temperature of the draw of each token, 0 taking the likeliest; default %(default)s",
    )
    parser.add_argument(
        "--top-p",
        type=PROBABILITY,
        default=1.0,
        metavar="X",
        help="probability of the likeliest tokens among which one is drawn; default %(default)s",
    )
    parser.add_argument(
        "--seed", type=SEED, metavar="N", help="seed of the draws; default a random one"
    )
    parsed = parse(parser, arguments)
    if parsed.jsonl and parsed.given:
        parser.error("give images and a question, or --jsonl FILE alone")
    options = {
        "max_new_tokens": parsed.max_tokens,
        "temperature": parsed.temperature,
        "top_p": parsed.top_p,
        "seed": parsed.seed,
    }
    if parsed.jsonl:
        lines = read_questions(parsed.jsonl)
        if lines:
            answer_lines(load_pipeline(parsed), lines, parsed.batch_size, options)
        return
    images, question = _images_and_question(parsed.given, parser)
    if question is not None:
        question = require_text(question, "the question", "ask something")
    for image in images:
        existing_image(image, "")
    if question is None:
        converse(load_pipeline(parsed), images, options)
        return
    for image in images:
        require_readable(image)
    message = {"role": "user", "content": [*images_of(images), question]}
    print(load_pipeline(parsed).chat([message], **options))


def images_of(paths: list[str]) -> list[dict[str, str]]:
    """Parts of a message."""
    return [{"type": "image", "image": path} for path in paths]


def _images_and_question(given: list[str], parser: Any) -> tuple[list[str], str | None]:
    """What is a file, or is called as one, is an image; what is not, the question."""
    images = [g for g in given if Path(g).suffix.lower() in IMAGES or os.path.isfile(g)]
    questions = [g for g in given if g not in images]
    if len(questions) > 1 or (questions and questions[0] != given[-1]):
        parser.error(f"no image is called {questions[0]!r}; give images, then one question")
    return images, questions[0] if questions else None


def require_readable(image: str) -> None:
    """Check the image before the model is loaded.

    Raises:
        UserError: it cannot be read.
    """
    from triptych.utils.images import open_image

    open_image(image)


# --- JSON lines -----------------------------------------------------------------------------------


def read_questions(file: str) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(file:line, id, messages) of every line; the id is the line's number where it has none.

    Raises:
        UserError: a line is not a question, names a missing image, or repeats another's id.
    """
    lines: list[tuple[str, str, list[dict[str, Any]]]] = []
    places: dict[str, str] = {}
    said: set[str] = set()
    for where, line in read_objects(file, read_input(file)):
        name = read_id(line, where) or re.search(r"\d+$", where)[0]
        if name in places:
            raise UserError(f"{where}: the id {name!r} is that of {places[name]} too.")
        places[name] = where
        lines.append((where, name, _messages(line, where)))
        _say_unread(line, where, said)
    return lines


def _messages(line: dict[str, Any], where: str) -> list[dict[str, Any]]:
    if isinstance(line.get("messages"), list):
        return line["messages"]
    if not isinstance(line.get("question"), str):
        raise UserError(f'{where} has no "question" and no "messages"; write one of them.')
    question = require_text(line["question"], f"{where}: the question", "ask something")
    images = line.get("images", line.get("image"))
    images = images if isinstance(images, list) else [] if images is None else [images]
    shown = [_shown(image, where) for image in images]
    return [{"role": "user", "content": [*shown, question]}]


def _shown(image: Any, where: str) -> dict[str, Any]:
    """A path or a data URL as a part of a message; a link is refused when it is read."""
    if isinstance(image, str) and is_url(image):
        return {"type": "image_url", "image_url": {"url": image}}
    return {"type": "image", "image": str(existing_image(image, f"{where}: "))}


def _say_unread(line: dict[str, Any], where: str, said: set[str]) -> None:
    """Warn of keys that nothing reads, each once: a typing error would leave an image out."""
    for key in sorted({*line} - KEYS - said):
        log.warning("%s: %r is not read; a line has %s", where, key[:60], ", ".join(sorted(KEYS)))
        said.add(key)


def answer_lines(
    pipe: Any,
    lines: list[tuple[str, str, list[dict[str, Any]]]],
    batch_size: int,
    options: dict[str, Any],
) -> None:
    """Print the answers as JSON lines, in order, as batches are done.

    Raises:
        UserError: a conversation has another shape, is too long, or an image is unreadable.
    """
    from triptych.inference.chat_messages import read_messages
    from triptych.prompts import PromptError

    seed = options["seed"]
    for at in range(0, len(lines), batch_size):
        if output_lost():
            return
        some = lines[at : at + batch_size]
        talks = []
        for where, _, messages in some:
            try:
                talks.append(read_messages(messages))
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
        first = {} if seed is None else {"seed": seed + at}
        try:
            answers = pipe.chat_batch(talks, **{**options, **first})
        except PromptError as error:
            raise UserError(f"{some[error.conversation][0]}: {error}") from error
        for (_, name, _), answer in zip(some, answers, strict=True):
            told = {"id": name, "answer": answer.text, "finish_reason": answer.finish_reason}
            print(json.dumps(told, ensure_ascii=False), flush=True)


# --- a conversation -------------------------------------------------------------------------------


def converse(pipe: Any, images: list[str], options: dict[str, Any]) -> None:
    """Read questions and print answers as they are written, until the input ends.

    From a pipe, every line is a question, and an error ends the command.

    Raises:
        UserError: something is wrong with what came through a pipe.
    """
    asking = sys.stdin is not None and sys.stdin.isatty()
    if asking:
        print(HELP, file=sys.stderr)
    messages: list[dict[str, Any]] = []
    shown: list[Any] = [{"type": "image", "image": image} for image in images]
    while not output_lost() and (said := _line(asking)) is not None:
        try:
            if not said:
                continue
            if not asking and said.startswith("{") and said.endswith("}"):
                raise UserError("a line of the input is JSON; give JSON lines by --jsonl -.")
            if said == "/quit":
                return
            if said == "/reset":
                messages = []
                shown = [{"type": "image", "image": image} for image in images]
            elif said.startswith("/image "):
                file = existing_image(said.removeprefix("/image ").strip(), "")
                require_readable(str(file))
                shown.append({"type": "image", "image": str(file)})
            elif said.startswith("/") and not os.path.exists(said):
                raise UserError(f"{said.split()[0]} is no command. {HELP}")
            else:
                question = {"role": "user", "content": [*shown, said]}
                answer = _answer(pipe, [*messages, question], options)
                if answer:
                    messages += [question, {"role": "assistant", "content": answer}]
                    shown = []
        except UserError as error:
            if not asking:
                raise
            print(f"triptych: {error}", file=sys.stderr)


def _line(asking: bool) -> str | None:
    """The next line; None at the end. Ctrl-C begins the line anew."""
    while True:
        try:
            if asking:
                return input("> ").strip()
            line = read_standard_line()
            return None if line is None else line.strip()
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not asking:
                raise
            print("\nCtrl-D ends.", file=sys.stderr)


def _answer(pipe: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Print an answer as it is written; what there is of it when Ctrl-C stops it."""
    written = ""
    pieces = pipe.chat(messages, stream=True, **options)
    try:
        for piece in pieces:
            written += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        pieces.close()
    print(flush=True)
    return written
