"""Texts of a sample by the rules of `triptych.utils.captions`; unusable ones are bad samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.data_modules.sources.base import BadSample
from triptych.utils import captions
from triptych.utils.captions import MAX_CHARACTERS, MAX_TEXT_BYTES
from triptych.utils.errors import TextError


def captions_of(value: object, key: str, what: str = "caption") -> list[str]:
    """`captions.captions_of` for the sample called `key`.

    Raises:
        BadSample: no caption is usable; each kind (empty, blank, UTF-16, ...) has its own reason.
    """
    with _of_sample(key, what):
        return captions.captions_of(value, what)


def check_text(text: object, key: str, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """`captions.check_text` for the sample called `key`.

    Raises:
        BadSample: it is not text, or too long.
    """
    with _of_sample(key, what):
        return captions.check_text(text, what, most)


def clean(text: object, key: str, what: str, most: int = MAX_CHARACTERS) -> str:
    """`captions.clean` for the sample called `key`.

    Raises:
        BadSample: it is not text, too long, or in no readable encoding.
    """
    with _of_sample(key, what):
        return captions.clean(text, what, most)


@contextmanager
def _of_sample(key: str, what: str) -> Iterator[None]:
    try:
        yield
    except TextError as error:
        raise BadSample(key, f"{what} {error.reason}", error.detail) from error
