"""Answers in words: conversations in, text out, piece by piece as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.interfaces import Sampling, VisionLanguageModel
from triptych.prompts import IM_END, PAD, pad, token_id


@dataclass
class ChatOutput:
    """Generated text with its token counts."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Without the token that ends an answer."""
    finish_reason: Literal["stop", "length"]
    """The model ended its answer, or was allowed no more tokens."""


@torch.no_grad()
def generate_texts(
    vlm: VisionLanguageModel,
    prompts: Sequence[Sequence[int]],
    images: tuple[Tensor, Tensor] | None,
    *,
    limits: Sequence[int],
    device: torch.device,
    sampling: Sampling | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[ChatOutput]:
    """Answer prompts of ids, all in one batch.

    Args:
        prompts: token ids whose last turn is open, of any lengths.
        images: patches and grids of the images of all prompts, in order, as returned by
            `VisionLanguageModel.image_inputs`.
        limits: maximum numbers of new tokens, one for each prompt.
        on_text: callback that receives (prompt index, new piece of its answer); an answer's pieces
            join to its text, and none ends inside a character. An exception ends the call.
    """
    tokenizer = vlm.tokenizer
    ids, mask = pad(prompts, token_id(tokenizer, PAD), left=True)
    rows = [DetokenizerState(tokenizer, limit) for limit in limits]

    def take(tokens: list[int]) -> list[bool]:
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.take(token)
            if on_text is not None and (piece := row.new_text()):
                on_text(number, piece)
        return [row.finished is not None for row in rows]

    vlm.generate_text(
        ids.to(device),
        mask.to(device),
        *((None, None) if images is None else (each.to(device) for each in images)),
        max_new_tokens=max(limits),
        sampling=sampling,
        on_tokens=take,
    )
    return [
        ChatOutput(row.text(), len(prompt), len(row.tokens), row.finished)
        for row, prompt in zip(rows, prompts, strict=True)
    ]


class DetokenizerState:
    """Streaming state of one answer: its tokens, finish reason, and the text already emitted."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit, self.end = tokenizer, limit, token_id(tokenizer, IM_END)
        self.tokens: list[int] = []
        self.finished: Literal["stop", "length"] | None = None
        # The first `num_emitted` tokens are emitted as text, but for white space at the end, which
        # is `held`: more text may follow it, or none. Those from `start` are decoded again with new
        # ones, since a tokenizer may write a token otherwise when it comes first.
        self.start = self.num_emitted = 0
        self.held, self.began = "", False

    def take(self, token: int) -> None:
        """The next token; nothing once the answer has ended."""
        if self.finished is not None:
            return
        if token == self.end:
            self.finished = "stop"
            return
        self.tokens.append(token)
        if len(self.tokens) == self.limit:
            self.finished = "length"

    def text(self) -> str:
        """The whole answer."""
        return self._decode(self.tokens).strip()

    def new_text(self) -> str:
        """New text since the last call: complete characters only, no white space at either end."""
        if self.num_emitted == len(self.tokens):
            return ""
        before = self._decode(self.tokens[self.start : self.num_emitted])
        after = self._decode(self.tokens[self.start :])
        # Half a character is decoded as U+FFFD; an answer's last may be one.
        if after.endswith("\N{REPLACEMENT CHARACTER}") and self.finished is None:
            return ""
        self.start, self.num_emitted = self.num_emitted, len(self.tokens)
        new = self.held + after[len(before) :]
        if not self.began:
            new = new.lstrip()
        piece = new.rstrip()
        self.held, self.began = new[len(piece) :], self.began or bool(piece)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
