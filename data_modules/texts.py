"""Captions and other texts of samples, by the rules of `triptych.listing.captions`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.listing import captions
from triptych.listing.captions import MAX_CHARACTERS, MAX_TEXT_BYTES, SampleTextError

from .source import BadSample


@contextmanager
def blamed_on(key: str) -> Iterator[None]:
    """Raise `BadSample` of the sample `key` for a text that cannot be used."""
    try:
        yield
    except SampleTextError as error:
        raise BadSample(key, error.reason, error.detail) from error


def captions_of(value: object, key: str, what: str = "caption") -> list[str]:
    """`captions.captions_of` for the sample `key`.

    Raises:
        BadSample: there is none.
    """
    with blamed_on(key):
        return captions.captions_of(value, what)


def check_text(text: object, key: str, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """`captions.check_text` for the sample `key`.

    Raises:
        BadSample: it is no text, or too long.
    """
    with blamed_on(key):
        return captions.check_text(text, what, most)


def clean(text: object, key: str, what: str, most: int = MAX_CHARACTERS) -> str:
    """`captions.clean` for the sample `key`.

    Raises:
        BadSample: it is no text, too long, or in no readable encoding.
    """
    with blamed_on(key):
        return captions.clean(text, what, most)
