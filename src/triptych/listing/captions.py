"""Captions as people and scrapers write them, made fit for a tokenizer: one rule for all readers.

A sample's caption is KEY.txt, else the "caption" of KEY.json; either may hold several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.errors import TextError
from triptych.texts import clean_text, decode_text, is_blank

from .records import parse

MAX_TEXT_BYTES = 1 << 20
MAX_CHARACTERS = 20_000
REPLACEMENT = "\ufffd"  # what others read bytes that are no UTF-8 as


class SampleTextError(TextError):
    """A text of a sample that cannot be used.

    Args:
        reason: the text and its fault, the same for all samples with it: "caption is blank".
        detail: helps to find the cause; logged, not counted.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})." if detail else f"{reason}.", reason)
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


def captions_in(read: Callable[[str], bytes | None]) -> list[str]:
    """The captions of a sample, clean; an empty list where it has neither KEY.txt nor one in JSON.

    Args:
        read: returns the file of a role, "txt" or "json", None where there is none.

    Raises:
        SampleTextError: the files are there, but hold no caption that can be used.
    """
    caption: object = read("txt")
    if caption is None:
        caption = facts_in(read("json")).get("caption")
    return [] if caption is None else captions_of(caption)


def facts_in(text: bytes | None) -> dict[str, Any]:
    """The object in KEY.json, {} where there is none.

    Raises:
        SampleTextError: it is no JSON object.
    """
    if text is None:
        return {}
    try:
        facts = parse(text)
    except ValueError as error:
        raise _fault("its .json", "is no JSON", str(error)) from error
    if not isinstance(facts, dict):
        raise _fault("its .json", "is no JSON object")
    return facts


def captions_of(value: object, what: str = "caption") -> list[str]:
    """The captions that a file, a column or a field of a sample holds, clean.

    Args:
        value: bytes of a file, a text, or a list of texts. Of a list, those that cannot be used
            are left out.
        what: name of the caption in messages.

    Raises:
        SampleTextError: there is none: each kind (empty, blank, UTF-16, ...) has its own reason.
    """
    if not isinstance(value, list):
        return [caption_of(value, what)]
    found, last = [], _fault(what, "is an empty list")
    for each in value:
        try:
            found.append(caption_of(each, what))
        except SampleTextError as error:
            last = error
    if not found:
        raise last
    return found


def caption_of(value: object, what: str = "caption") -> str:
    """One caption, clean and without white space around it.

    Raises:
        SampleTextError: it is empty, blank, no text, or in another encoding.
    """
    try:
        text = decode_text(value, what) if isinstance(value, bytes) else value
    except TextError as error:
        raise _fault(what, error.reason) from error
    text = clean(check_text(text, what), what, MAX_TEXT_BYTES).strip()
    if is_blank(text):
        raise _fault(what, "is blank" if value else "is empty")
    return text


def text_bytes(value: object) -> int:
    """Bytes of a text, or of all texts of a list; 0 of anything else."""
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else 0


def check_text(text: object, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """`text` as it is, if it is text of at most `most` bytes in UTF-8.

    Raises:
        SampleTextError: it is none.
    """
    if not isinstance(text, str):
        raise _fault(what, "is no text", f"but {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # bytes that were no UTF-8, or halves of characters
        raise _fault(what, "is no UTF-8") from error
    if size > most:
        raise _fault(what, "is too long", f"{size:,} bytes, at most {most:,}")
    return text


def clean(text: object, what: str, most: int = MAX_CHARACTERS) -> str:
    """`text` by `texts.clean_text`, as prompts are cleaned.

    Args:
        text: of a caption, an instruction, a question or an answer, which `what` says.
        what: name of the text in messages.
        most: characters; a longer text never meets the tokenizer, whose time grows with it.

    Raises:
        SampleTextError: it is no text, too long, or in no readable encoding.
    """
    if not isinstance(text, str):
        raise _fault(what, "is no text", f"but {type(text).__name__}")
    if len(text) > most:
        raise _fault(what, "is too long", f"{len(text)} characters, at most {most}")
    try:
        text = clean_text(text, what)
    except TextError as error:
        raise _fault(what, error.reason) from error
    if text.count(REPLACEMENT) * 10 > len(text):  # a few are a typo, many another encoding
        raise _fault(what, "is no UTF-8")
    return text


def _fault(what: str, fault: str, detail: str = "") -> SampleTextError:
    return SampleTextError(f"{what} {fault}", detail)
