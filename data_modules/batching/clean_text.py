"""Cleans the texts of a sample by `triptych.utils.captions`; unusable ones are bad samples."""

from __future__ import annotations

from triptych.data_modules.sources.base import bad_sample_on_error
from triptych.utils import captions
from triptych.utils.captions import MAX_CHARACTERS, MAX_TEXT_BYTES


def captions_of(value: object, key: str, label: str = "caption") -> list[str]:
    """Apply `captions.captions_of` to a text of the sample `key`.

    Raises:
        BadSample: no caption is usable; each kind (empty, blank, UTF-16, ...) has its own reason.
    """
    with bad_sample_on_error(key, label):
        return captions.captions_of(value, label)


def check_text(text: object, key: str, label: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Apply `captions.check_text` to a text of the sample `key`.

    Raises:
        BadSample: the text is not a string, or too long.
    """
    with bad_sample_on_error(key, label):
        return captions.check_text(text, label, max_bytes)


def clean(text: object, key: str, label: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Apply `captions.clean` to a text of the sample `key`.

    Raises:
        BadSample: the text is not a string, too long, or in an unreadable encoding.
    """
    with bad_sample_on_error(key, label):
        return captions.clean(text, label, max_characters)
