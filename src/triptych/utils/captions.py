"""Cleaning of captions, by one rule for data sets and evaluation."""

from __future__ import annotations

from triptych.utils.errors import TextError
from triptych.utils.text import clean_text, decode_text, is_blank

MAX_TEXT_BYTES = 1 << 20
MAX_CHARACTERS = 20_000
REPLACEMENT = "\ufffd"  # replaces bytes that were decoded as UTF-8 and are not


def captions_of(value: object, what: str = "caption") -> list[str]:
    """Clean captions in a file, a column or a field of a sample.

    Args:
        value: bytes of a file, a text, or a list of texts. Unusable texts of a list are skipped.
        what: name of the text in errors.

    Raises:
        TextError: no caption is usable; each kind (empty, blank, UTF-16, ...) has its own reason.
    """
    if not isinstance(value, list):
        return [caption_of(value, what)]
    found, last = [], _error(what, "is an empty list")
    for each in value:
        try:
            found.append(caption_of(each, what))
        except TextError as error:
            last = error
    if not found:
        raise last
    return found


def caption_of(value: object, what: str = "caption") -> str:
    """One caption, clean and stripped.

    Raises:
        TextError: it is empty, blank, not text, or in another encoding.
    """
    text = decode_text(value, what) if isinstance(value, bytes) else value
    text = clean(check_text(text, what), what, MAX_TEXT_BYTES).strip()
    if is_blank(text):
        raise _error(what, "is blank" if value else "is empty")
    return text


def check_text(text: object, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """Return `text` unchanged if it is text of at most `most` bytes in UTF-8.

    Raises:
        TextError: it is not text, too long, or not UTF-8.
    """
    if not isinstance(text, str):
        raise _error(what, "is no text", f"but {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # bytes that are not UTF-8, or halves of characters
        raise _error(what, "is no UTF-8") from error
    if size > most:
        raise _error(what, "is too long", f"{size:,} bytes, at most {most:,}")
    return text


def clean(text: object, what: str, most: int = MAX_CHARACTERS) -> str:
    """Clean a text like prompts, by `clean_text`.

    Args:
        text: a caption, an instruction, a question or an answer.
        what: name of the text in errors.
        most: maximum number of characters, which bounds the time of the tokenizer.

    Raises:
        TextError: it is not text, too long, or in no readable encoding.
    """
    if not isinstance(text, str):
        raise _error(what, "is no text", f"but {type(text).__name__}")
    if len(text) > most:
        raise _error(what, "is too long", f"{len(text)} characters, at most {most}")
    text = clean_text(text, what)
    if text.count(REPLACEMENT) * 10 > len(text):  # a few are errors, many another encoding
        raise _error(what, "is no UTF-8")
    return text


def text_bytes(value: object) -> int:
    """Bytes of a text, or of all texts of a list; 0 for anything else."""
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else 0


def _error(what: str, reason: str, detail: str = "") -> TextError:
    return TextError(f"{what} {reason}" + (f" ({detail})." if detail else "."), reason, detail)
