"""Tokenization of text: control tokens come only from templates, never from text.

A tokenizer's own call recognizes its added tokens (`<|im_end|>`, `<|image_pad|>`, `<tool_call>`,
...) in any text, so that a user's text could end its turn or imitate an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from triptych.utils.errors import UserError

ZERO_WIDTH_SPACE = "\u200b"


class Control(str):
    """A control token of a template; any other `str` of it is text."""


def token_id(tokenizer: Any, token: str) -> int:
    """Id of a control token.

    Raises:
        UserError: the tokenizer does not have this token.
    """
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no token {token!r}; "
            "use a Qwen2.5-VL tokenizer to which it was added."
        )
    return number


def encode(tokenizer: Any, pieces: Iterable[str]) -> list[int]:
    """Token ids of control tokens and of the texts between them.

    Adjacent texts are encoded together, so that ordinary text gets the same ids as in the
    tokenizer's encoding of the whole template.
    """
    ids: list[int] = []
    for control, run in groupby(pieces, lambda piece: isinstance(piece, Control)):
        if control:
            ids += [token_id(tokenizer, token) for token in run]
        else:
            ids += encode_text(tokenizer, "".join(run))
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, in which control tokens are ordinary characters."""
    backend = tokenizer.backend_tokenizer
    controls = set(backend.get_added_tokens_decoder()) - {tokenizer.unk_token_id}
    read = without_added_tokens(backend).encode(text, add_special_tokens=False)
    ids: list[int] = []
    for number, token in zip(read.ids, read.tokens, strict=True):
        if number in controls:  # also a word of the vocabulary
            ids += [part.id for character in token for part in backend.model.tokenize(character)]
        else:
            ids.append(number)
    return ids


def without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """Copy of a Rust tokenizer without added tokens."""
    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def break_control_tokens(tokenizer: Any, text: str) -> str:
    """Insert a zero-width space into each control token in a text.

    For third-party models, whose own template or processor joins texts and control tokens.
    """
    for added in tokenizer.added_tokens_decoder.values():
        token = added.content
        text = text.replace(token, token[:1] + ZERO_WIDTH_SPACE + token[1:])
    return text
