"""Encoding, lines and cleaning of user text, by one rule for prompts and captions.

Files are UTF-8, with or without a byte order mark; lines end only at \\n and \\r\\n. Prompts,
captions and messages are cleaned before tokenization: NULs and lone surrogates are refused, a run
of other control characters becomes one space. Training and inference get equal tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from triptych.utils.errors import TextError

MARK = "\ufeff"  # the byte order mark
# C0 and C1 without tab, line feed and carriage return; "delete" and the byte order mark.
_CONTROLS = "".join(map(chr, (*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0)))) + MARK
_CONTROL = re.compile(f"[{re.escape(_CONTROLS)}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
# invisible characters that Unicode classifies as letters, symbols or marks
_INKLESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_INKLESS_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
# byte order marks; those of UTF-32 begin with those of UTF-16
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
HEAD = 4096  # number of bytes from which an encoding is detected


def refuse_wide(data: bytes, what: object) -> None:
    """Refuse UTF-16 and UTF-32, detected by a byte order mark or many NULs.

    Raises:
        TextError: the bytes are in one of these encodings; `what` is their name.
    """
    head = data[:HEAD]
    many = len(head) > 1 and head.count(0) * 3 >= len(head)
    name = next((each for mark, each in _MARKS.items() if head.startswith(mark)), "UTF-16" * many)
    if name:
        raise TextError(f"{what} is {name}; save it as UTF-8.", f"is {name}")


def decode_text(data: bytes, what: object) -> str:
    """Decode UTF-8, without a byte order mark; `what` is the name in errors.

    Raises:
        TextError: the bytes are in another encoding.
    """
    refuse_wide(data, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{what} is no text in UTF-8 (byte {error.start:,}); save it as UTF-8.", "is no UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    """Split a text into lines, only at \\n and \\r\\n."""
    lines = [line.removesuffix("\r").removeprefix(MARK) for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, stripped line) of non-blank lines."""
    for number, line in enumerate(split_lines(text), 1):
        if not is_blank(line):
            yield number, line.strip()


def is_blank(text: str) -> bool:
    """Whether all characters of a text are invisible, such as white space and joiners."""
    return all(
        unicodedata.category(each) in _INKLESS_CATEGORIES or each in _INKLESS for each in text
    )


def clean_text(text: str, what: str = "the text") -> str:
    """Clean a prompt, a caption or a message for the tokenizer; idempotent.

    Raises:
        TextError: it has a NUL or a lone surrogate; `what` is its name.
    """
    if (place := text.find("\0")) >= 0:
        raise TextError(f"{what} holds a NUL (character {place + 1:,}); remove it.", "holds a NUL")
    if _SURROGATE.search(text):  # surrogate pairs are valid
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise TextError(
                f"{what} holds half of a character, or bytes that are no UTF-8; correct it.",
                "is no UTF-8",
            ) from error
    return without_controls(text)


def without_controls(text: str) -> str:
    """Replace runs of control characters by a space, and remove them at both ends.

    Tab, line feed and carriage return are unchanged.
    """
    return _CONTROL.sub(" ", text.strip(_CONTROLS))
