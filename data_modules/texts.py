"""Captions as people and scrapers write them, made fit for a tokenizer."""

from __future__ import annotations

import re

from .files import MAX_TEXT_BYTES
from .source import BadSample

MAX_CHARACTERS = 20_000
# C0 and C1 without tab, line feed and carriage return; "delete" and the byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8 are read as


def check_text(text: object, key: str, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """`text` as it is, if it is text of at most `most` bytes in UTF-8.

    Args:
        text: of a caption, which `what` says.
        key: name of the sample.

    Raises:
        BadSample: it is none.
    """
    if not isinstance(text, str):
        raise BadSample(key, f"{what} is no text", f"but {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # bytes that were no UTF-8, or halves of characters
        raise BadSample(key, f"{what} is no UTF-8") from error
    if size > most:
        raise BadSample(key, f"{what} is too long", f"{size:,} bytes, at most {most:,}")
    return text


def clean(text: object, key: str, what: str, most: int = MAX_CHARACTERS) -> str:
    """`text` with a space for control characters, in characters that every tokenizer takes.

    Args:
        text: of a caption, an instruction, a question or an answer, which `what` says.
        key: name of the sample.
        most: characters; a longer text never meets the tokenizer, whose time grows with it.

    Raises:
        BadSample: it is no text, too long, or in no readable encoding.
    """
    if not isinstance(text, str):
        raise BadSample(key, f"{what} is no text", f"but {type(text).__name__}")
    if len(text) > most:
        raise BadSample(key, f"{what} is too long", f"{len(text)} characters, at most {most}")
    if _SURROGATE.search(text):  # halves of characters, as "\ud83d" alone in JSON makes them
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if text.count(REPLACEMENT) * 10 > len(text):  # a few are a typo, many another encoding
        raise BadSample(key, f"{what} is no UTF-8")
    return _CONTROL.sub(" ", text)
