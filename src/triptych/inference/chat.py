"""Answers to conversations: tokenization of messages, and text generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from triptych.conversations import chat_ids
from triptych.inference.chat_messages import Conversation, read_messages
from triptych.inference.image_requests import Seeds, seeds_for
from triptych.interfaces import Sampling
from triptych.modules.text_generation import ChatOutput, generate_texts
from triptych.prompts import PromptError, conversation_ids
from triptych.utils.images import scaled_pixels
from triptych.utils.limits import PROBABILITY, TEMPERATURE, TOKENS

OnText = Callable[[int, str], None]


def token_sampling(
    max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int]
) -> Sampling:
    """Token sampling parameters, with a seed for each conversation.

    Raises:
        UserError: a value is out of range.
    """
    TOKENS.require(max_new_tokens, "max_new_tokens")
    TEMPERATURE.require(temperature, "temperature")
    PROBABILITY.require(top_p, "top_p")
    return Sampling(temperature, top_p, seeds)


def prepare_answers(
    model: Any,
    device: torch.device,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: Seeds,
) -> Callable[[OnText | None], list[ChatOutput]]:
    """Validate and tokenize conversations; returns a function that generates the answers."""
    panel = model.understanding
    seeds = seeds_for(seed, len(conversations), "conversations")
    sampling = token_sampling(max_new_tokens, temperature, top_p, seeds)
    read = [read_messages(each) for each in conversations]
    if panel.images_first:
        read = [[replace(m, content=sorted(m.content, key=_is_text)) for m in t] for t in read]
    images = [part for talk in read for m in talk for part in m.content if not _is_text(part)]
    shown, tokens = panel.show(images) if images else (None, [])
    sizes = iter(tokens)
    turns = [
        [(m.role, [p if _is_text(p) else next(sizes) for p in m.content]) for m in talk]
        for talk in read
    ]
    rows = []
    for number, talk in enumerate(turns):
        try:
            rows.append(chat_ids(panel.vlm.tokenizer, talk, panel.chat_tokens))
        except PromptError as error:
            error.conversation = number
            raise
    limits = [min(max_new_tokens, panel.chat_tokens - len(row)) for row in rows]

    def answer(on_text: OnText | None) -> list[ChatOutput]:
        return generate_texts(
            panel.vlm,
            rows,
            shown,
            limits=limits,
            device=device,
            sampling=sampling,
            on_text=on_text,
        )

    return answer


def _is_text(part: str | Image.Image) -> bool:
    return isinstance(part, str)


@torch.no_grad()
def answer(
    model: Any, images: Tensor | None, questions: list[str], *, max_new_tokens: int = 64
) -> list[str]:
    """Answer one question about each image uint8 [B,3,H,W], or without images if None."""
    facts = model.preprocessing()
    image_tokens = facts.image_tokens if images is not None else 0
    rows = [
        conversation_ids(facts.tokenizer, [(question, None)], facts.max_tokens, image_tokens)[0]
        for question in questions
    ]
    shown = None
    if images is not None:
        shown = facts.image_inputs(scaled_pixels(images, facts.understanding_size))
    limits = [max_new_tokens] * len(rows)
    vlm = model.understanding.vlm
    return [
        each.text for each in generate_texts(vlm, rows, shown, limits=limits, device=model.device)
    ]
