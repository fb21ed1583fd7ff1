"""Cleans the texts of a sample by `triptych.utils.captions`; unusable ones are bad samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.data_modules.sources.base import BadSample
from triptych.utils import captions
from triptych.utils.captions import MAX_CHARACTERS, MAX_TEXT_BYTES
from triptych.utils.errors import TextError


def captions_of(value: object, key: str, what: str = "caption") -> list[str]:
    """Apply `captions.captions_of` to a text of the sample `key`.

    Raises:
        BadSample: no caption is usable; each kind (empty, blank, UTF-16, ...) has its own reason.
    """
    with _of_sample(key, what):
        return captions.captions_of(value, what)


def check_text(text: object, key: str, what: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Apply `captions.check_text` to a text of the sample `key`.

    Raises:
        BadSample: the text is not a string, or too long.
    """
    with _of_sample(key, what):
        return captions.check_text(text, what, max_bytes)


def clean(text: object, key: str, what: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Apply `captions.clean` to a text of the sample `key`.

    Raises:
        BadSample: the text is not a string, too long, or in an unreadable encoding.
    """
    with _of_sample(key, what):
        return captions.clean(text, what, max_characters)


@contextmanager
def _of_sample(key: str, what: str) -> Iterator[None]:
    try:
        yield
    except TextError as error:
        raise BadSample(key, f"{what} {error.reason}", error.detail) from error
