"""Prompts of conversations with images in any message.

A message of the assistant with an image is

    <|im_start|>assistant text [IMG] <|vision_start|><|image_pad|>...<|vision_end|> text <|im_end|>

The model says `[IMG]`; the latent queries run at that place and make the image, which then comes
back through the vision tower. The queries are no part of the conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from triptych.prompts import (
    ANSWER,
    IGNORED,
    IM_END,
    IM_START,
    START_OF_IMAGE,
    SYSTEM,
    Pieces,
    PromptError,
    image,
)
from triptych.utils.text import is_blank
from triptych.utils.tokens import Control, encode


def chat_ids(
    tokenizer,
    messages: Sequence[tuple[str, Sequence[str | int]]],
    max_tokens: int,
) -> list[int]:
    """Ids of a conversation for the model to continue: the header of its answer is open.

    Like `message_ids`, in which it continues the last message of the assistant.

    Raises:
        PromptError: a message is empty, or `max_tokens` tokens leave no room for an answer.
    """
    ids = [*message_ids(tokenizer, messages)[0], *encode(tokenizer, ANSWER)]
    if len(ids) >= max_tokens:
        raise PromptError(
            f"the conversation has {len(ids)} tokens, the model takes {max_tokens} with its "
            "answer; shorten it, or leave its beginning out.",
            "conversation is too long for the model",
        )
    return ids


def interleaved_ids(
    tokenizer,
    messages: Sequence[tuple[str, Sequence[str | int]]],
    max_tokens: int,
    key: str | None = None,
) -> tuple[list[int], list[int]]:
    """`message_ids` of a whole conversation to learn.

    Raises:
        PromptError: a message is empty, or there are more than `max_tokens` tokens.
    """
    where = f" of sample {key!r}" if key else ""
    ids, labels = message_ids(tokenizer, messages, where)
    if len(ids) > max_tokens:
        raise PromptError(
            f"the conversation{where} has {len(ids)} tokens in {len(messages)} messages, the model "
            f"takes {max_tokens}; split it into shorter ones.",
            "conversation is too long for the model",
        )
    return ids, labels


def message_ids(
    tokenizer, messages: Sequence[tuple[str, Sequence[str | int]]], where: str = ""
) -> tuple[list[int], list[int]]:
    """Ids and labels of messages with images anywhere, and with a system message of their own.

    The assistant says `[IMG]` before each of its images, as it does where one is to be generated.
    Labels are on what it says: on `[IMG]`, its texts and `<|im_end|>`, never on placeholders.

    Args:
        messages: (role, pieces); a piece is a cleaned text, or the number of tokens of an image.
        where: suffix of the messages' names in errors.

    Raises:
        PromptError: a message is empty.
    """
    ids: list[int] = []
    labels: list[int] = []

    def add(pieces: Iterable[str], learned: bool = False) -> None:
        new = encode(tokenizer, pieces)
        ids.extend(new)
        labels.extend(new if learned else [IGNORED] * len(new))

    if messages[0][0] != "system":
        add(SYSTEM)
    for number, (role, content) in enumerate(messages):
        answers = role == "assistant"
        message = _pieces(content, answers)
        if all(is_blank(each) and not isinstance(each, Control) for each in message):
            raise PromptError(
                f"message {number + 1}{where} is empty; say something.", "message is empty"
            )
        if not answers:
            add((IM_START, f"{role}\n", *message, IM_END, "\n"))
            continue
        add(ANSWER)  # the model writes its answer from here on: no token spans this
        for learned, run in groupby((*message, IM_END), _is_said):
            add(run, learned)
        add(("\n",))
    return ids, labels


def _pieces(content: Sequence[str | int], answers: bool) -> Pieces:
    """Texts and placeholders of a message, without white space at its ends.

    In an answer also without that beside an image. A `Control` that comes in is text as well.
    """
    pieces: list[str] = []
    for piece in content:
        if isinstance(piece, int):
            pieces += (START_OF_IMAGE, *image(piece)) if answers else image(piece)
        else:
            pieces.append(str(piece))
    runs = [(shown, [*run]) for shown, run in groupby(pieces, lambda p: isinstance(p, Control))]
    message: list[str] = []
    for number, (shown, run) in enumerate(runs):
        text = "" if shown else "".join(run)
        text = text.lstrip() if answers or number == 0 else text
        text = text.rstrip() if answers or number == len(runs) - 1 else text
        message += run if shown else filter(None, [text])
    return tuple(message)


def _is_said(piece: str) -> bool:
    """Whether the model says a piece of its answer."""
    return not isinstance(piece, Control) or piece in (START_OF_IMAGE, IM_END)
