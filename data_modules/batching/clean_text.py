"""Captions as people and scrapers write them, made fit for a tokenizer."""

from __future__ import annotations

from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.sources.safe_read import MAX_TEXT_BYTES
from triptych.utils.errors import TextError
from triptych.utils.text import clean_text, decode_text, is_blank

MAX_CHARACTERS = 20_000
REPLACEMENT = "\ufffd"  # what others read bytes that are no UTF-8 as


def captions_of(value: object, key: str, what: str = "caption") -> list[str]:
    """The captions that a file, a column or a field of a sample holds, clean.

    Args:
        value: bytes of a file, a text, or a list of texts. Of a list, those that cannot be used
            are left out.
        key: name of the sample.

    Raises:
        BadSample: there is none: each kind (empty, blank, UTF-16, ...) has a reason of its own.
    """
    if not isinstance(value, list):
        return [caption_of(value, key, what)]
    found, last = [], BadSample(key, f"{what} is an empty list")
    for each in value:
        try:
            found.append(caption_of(each, key, what))
        except BadSample as bad:
            last = bad
    if not found:
        raise last
    return found


def caption_of(value: object, key: str, what: str = "caption") -> str:
    """One caption, clean and without white space around it.

    Raises:
        BadSample: it is empty, blank, no text, or in another encoding.
    """
    try:
        text = decode_text(value, what) if isinstance(value, bytes) else value
    except TextError as error:
        raise BadSample(key, f"{what} {error.reason}") from error
    text = clean(check_text(text, key, what), key, what, MAX_TEXT_BYTES).strip()
    if is_blank(text):
        raise BadSample(key, f"{what} is {'blank' if value else 'empty'}")
    return text


def text_bytes(value: object) -> int:
    """Bytes of a text, or of all texts of a list; 0 of anything else."""
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else 0


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
    """`text` by `text.clean_text`, as prompts are cleaned.

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
    try:
        text = clean_text(text, what)
    except TextError as error:
        raise BadSample(key, f"{what} {error.reason}") from error
    if text.count(REPLACEMENT) * 10 > len(text):  # a few are a typo, many another encoding
        raise BadSample(key, f"{what} is no UTF-8")
    return text
