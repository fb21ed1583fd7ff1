"""Answers to conversations: tokenization of messages, and text generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from triptych.conversations import chat_ids
from triptych.inference.chat_messages import Conversation, Message, read_messages
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_requests import Seeds, seeds_for
from triptych.inference.interleaved import (
    AnswerWriter,
    OnPart,
    OpenAnswer,
    most_images,
    split_shown,
)
from triptych.interfaces import Sampling
from triptych.modules.text_generation import ChatOutput, generate_texts
from triptych.prompts import PromptError, conversation_ids
from triptych.utils.images import scaled_pixels
from triptych.utils.limits import ANSWER_IMAGES, PROBABILITY, TEMPERATURE, TOKENS


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
    max_images: int | None = None,
    config: GenerationConfig | None = None,
) -> Callable[[OnPart | None], list[ChatOutput]]:
    """Validate and tokenize conversations; returns a function that generates the answers."""
    panel = model.understanding
    seeds = seeds_for(seed, len(conversations), "conversations")
    sampling = token_sampling(max_new_tokens, temperature, top_p, seeds)
    if max_images is not None:
        ANSWER_IMAGES.require(max_images, "max_images")
    writer = AnswerWriter(
        model,
        device,
        max_new_tokens=max_new_tokens,
        max_images=most_images(model, max_images),
        sampling=sampling,
        config=config or GenerationConfig(),
    )
    read = [read_messages(each) for each in conversations]
    if panel.images_first:
        read = [[_images_first(message) for message in talk] for talk in read]
    images = [[part for m in talk for part in m.content if not _is_text(part)] for talk in read]
    every = [image for some in images for image in some]
    shown, tokens = split_shown(panel, every) if every else ([], [])
    inputs, sizes = iter(shown), iter(tokens)
    rows = []
    for number, talk in enumerate(read):
        turns = [(m.role, [p if _is_text(p) else next(sizes) for p in m.content]) for m in talk]
        try:
            rows.append(chat_ids(panel.vlm.tokenizer, turns, panel.chat_tokens))
        except PromptError as error:
            error.conversation = number
            raise
    inputs_of = [[next(inputs) for _ in some] for some in images]

    def answer(on_part: OnPart | None) -> list[ChatOutput]:
        answers = [
            OpenAnswer(list(row), list(seen), some[-1] if some else None, seed)
            for row, seen, some, seed in zip(rows, inputs_of, images, seeds, strict=True)
        ]
        return writer(answers, on_part)

    return answer


def _images_first(message: Message) -> Message:
    """Images before texts, in a message of the user."""
    if message.role != "user":
        return message
    return replace(message, content=sorted(message.content, key=_is_text))


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
