"""Text to token ids: a control token comes from a template, never from a text.

A tokenizer's own call finds its added tokens (`<|im_end|>`, `<|image_pad|>`, `<tool_call>`, ...)
wherever their characters stand, so that a user's text could end its turn or pose as an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from triptych.utils.errors import UserError

ZERO_WIDTH_SPACE = "\u200b"


class Control(str):
    """A control token that a template writes; any other `str` among its pieces is text."""


def token_id(tokenizer: Any, token: str) -> int:
    """The id of a control token.

    Raises:
        UserError: the tokenizer does not know it as one token.
    """
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no token {token!r}; "
            "use a Qwen2.5-VL tokenizer to which it was added."
        )
    return number


def encode(tokenizer: Any, pieces: Iterable[str]) -> list[int]:
    """Ids of control tokens and of the texts between them.

    Texts that follow each other are encoded as one, so that ordinary text gets the ids that the
    tokenizer itself gives to the whole template.
    """
    ids: list[int] = []
    for control, run in groupby(pieces, lambda piece: isinstance(piece, Control)):
        if control:
            ids += [token_id(tokenizer, token) for token in run]
        else:
            ids += encode_text(tokenizer, "".join(run))
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of only a text; the characters of a control token in it are characters."""
    backend = tokenizer.backend_tokenizer
    controls = set(backend.get_added_tokens_decoder()) - {tokenizer.unk_token_id}
    read = without_added_tokens(backend).encode(text, add_special_tokens=False)
    ids: list[int] = []
    for number, token in zip(read.ids, read.tokens, strict=True):
        if number in controls:  # the vocabulary has it as a word, too
            ids += [part.id for character in token for part in backend.model.tokenize(character)]
        else:
            ids.append(number)
    return ids


def without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer of the Rust library, to which all is text."""
    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def break_control_tokens(tokenizer: Any, text: str) -> str:
    """`text` with a zero-width space inside each control token.

    For models of others, whose own template or processor joins texts and control tokens.
    """
    for added in tokenizer.added_tokens_decoder.values():
        token = added.content
        text = text.replace(token, token[:1] + ZERO_WIDTH_SPACE + token[1:])
    return text
