"""Conversations on a terminal, through a pipe, or as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

from triptych.cli.input_files import existing, read_id, require_text
from triptych.utils.documents import read_standard_line
from triptych.utils.errors import UserError
from triptych.utils.image_urls import is_url
from triptych.utils.prompt_files import read_input, read_objects
from triptych.utils.standard_streams import output_lost

log = logging.getLogger(__name__)

KEYS = {"id", "question", "image", "images", "messages"}
"""Of a JSON line."""
HELP = "/image FILE shows a picture, /reset begins anew, /quit or Ctrl-D ends."


def readable(picture: str) -> None:
    """Check the picture before the model is loaded.

    Raises:
        UserError: it cannot be read.
    """
    from triptych.utils.images import open_picture

    open_picture(picture)


# --- JSON lines -----------------------------------------------------------------------------------


def read_questions(file: str) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(file:line, id, messages) of every line; the id is the line's number where it has none.

    Raises:
        UserError: a line is no question, names a picture that is not there, or has another's id.
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
    return {"type": "image", "image": str(existing(image, f"{where}: "))}


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
        UserError: a conversation has another shape, is too long, or a picture is unreadable.
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


def converse(pipe: Any, pictures: list[str], options: dict[str, Any]) -> None:
    """Read questions and print answers as they are written, until the input ends.

    From a pipe, every line is a question, and what is wrong ends the command.

    Raises:
        UserError: something is wrong with what came through a pipe.
    """
    asking = sys.stdin is not None and sys.stdin.isatty()
    if asking:
        print(HELP, file=sys.stderr)
    messages: list[dict[str, Any]] = []
    shown: list[Any] = [{"type": "image", "image": picture} for picture in pictures]
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
                shown = [{"type": "image", "image": picture} for picture in pictures]
            elif said.startswith("/image "):
                file = existing(said.removeprefix("/image ").strip(), "")
                readable(str(file))
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
