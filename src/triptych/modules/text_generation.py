"""Text of answers: conversations in, text out, piece by piece as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from triptych.interfaces import Sampling, VisionLanguageModel
from triptych.prompts import IM_END, PAD, START_OF_IMAGE, pad, token_id


@dataclass
class ChatOutput:
    """A generated answer with its token counts."""

    text: str
    """Its text; a newline stands for each image between texts."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens that the model wrote, without the one that ends an answer."""
    finish_reason: Literal["stop", "length"]
    """The model ended its answer, or was allowed no more tokens."""
    content: list[str | Image.Image] = field(default_factory=list)
    """Texts and images in order."""

    @property
    def images(self) -> list[Image.Image]:
        """The images of the answer."""
        return [part for part in self.content if not isinstance(part, str)]


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
    """Answer prompts of ids in words, all in one batch; arguments as of `write`."""
    forbidden = [image_tokens(vlm)] * len(prompts)
    rows = write(
        vlm,
        prompts,
        images,
        limits=limits,
        device=device,
        sampling=sampling,
        forbidden=forbidden,
        on_text=on_text,
    )
    return [
        ChatOutput(text, len(prompt), len(row.tokens), row.finished, [text] if text else [])
        for row, prompt, text in zip(rows, prompts, [row.text() for row in rows], strict=True)
    ]


def image_tokens(vlm: VisionLanguageModel) -> list[int]:
    """Id of the token by which the model says that an image comes; none without such a token."""
    tokenizer = vlm.tokenizer
    number = tokenizer.convert_tokens_to_ids(START_OF_IMAGE)
    return [] if number in (None, tokenizer.unk_token_id) else [number]


@torch.no_grad()
def write(
    vlm: VisionLanguageModel,
    prompts: Sequence[Sequence[int]],
    images: tuple[Tensor, Tensor] | None,
    *,
    limits: Sequence[int],
    device: torch.device,
    sampling: Sampling | None = None,
    forbidden: Sequence[Sequence[int]] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> list[DetokenizerState]:
    """Continue prompts of ids in one batch, each up to its end or its next image.

    Args:
        prompts: token ids whose last turn is open, of any lengths.
        images: patches and grids of the images of all prompts, in order, as returned by
            `VisionLanguageModel.image_inputs`.
        limits: maximum numbers of new tokens, one for each prompt.
        forbidden: tokens that each prompt may not be continued by.
        on_text: callback that receives (prompt index, new piece of its text); the pieces join to
            the text, and none ends inside a character. An exception ends the call.
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
        forbidden=forbidden,
        on_tokens=take,
    )
    return rows


class DetokenizerState:
    """Streaming state of an answer's text: tokens, finish reason, and the text already emitted."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit, self.end = tokenizer, limit, token_id(tokenizer, IM_END)
        self.image = tokenizer.convert_tokens_to_ids(START_OF_IMAGE)
        self.tokens: list[int] = []
        self.finished: Literal["stop", "length", "image"] | None = None
        # The first `num_emitted` tokens are emitted as text, but for white space at the end, which
        # is `held`: more text may follow it, or none. Those from `start` are decoded again with new
        # ones, since a tokenizer may write a token otherwise when it comes first.
        self.start = self.num_emitted = 0
        self.held, self.began = "", False

    def take(self, token: int) -> None:
        """The next token; nothing once the answer has ended."""
        if self.finished is not None:
            return
        if token in (self.end, self.image):
            self.finished = "stop" if token == self.end else "image"
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
