"""A real language model in our class against transformers: logits, answers, prefix cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.backbones import QwenVL
from triptych.prompts import pad, shared_tokens
from verify_real.rows import Row

QUERIES = 64
ROUNDED = 8  # results that a layer rounds, one after the other
NEW_TOKENS = 12


@dataclass(frozen=True)
class Question:
    """A prompt for an answer.

    Args:
        ids: token ids of the prompt.
        word: a word of the right answer; empty where none is demanded.
    """

    ids: list[int]
    word: str


def rows(
    name: str, reference: Any, vlm: QwenVL, tokenizer: Any, questions: Sequence[Question]
) -> Iterator[Row]:
    """Rows of a language model; `vlm` and transformers' `reference` share their tensors.

    Bounds follow from the unit of rounding u of the dtype: logits may differ by one of their
    roundings, 2u; outputs at the queries by those of all layers, which add up like a random walk,
    2u sqrt(8 layers), and in float32 by those of its long sums, sqrt(hidden size) as much.
    """
    unit = torch.finfo(reference.dtype).eps  # 2u
    differences = [_logits(reference, vlm, question.ids) for question in questions]
    compared = f"transformers, largest relative difference of {len(questions)} prompts"
    bound = unit if reference.dtype == torch.bfloat16 else 100 * unit
    yield Row(f"{name} logits", compared, max(differences), bound)

    answers = [_answer(vlm, question.ids) for question in questions]
    expected = [_reference_answer(reference, vlm, question.ids) for question in questions]
    number = sum(map(len, expected))
    differing = sum(a != b for a, b in zip(answers, expected, strict=True))
    compared = f"transformers, answers of {len(questions)} that differ in {number} tokens"
    yield Row(f"{name} greedy answers", compared, differing, 0, "==")
    texts = [tokenizer.decode(answer) for answer in answers]
    demanded = [(q.word, text) for q, text in zip(questions, texts, strict=True) if q.word]
    right = sum(word in text for word, text in demanded)
    shown = "; ".join(" ".join(text.replace("<|im_end|>", "").split()) for text in texts)
    yield Row(f"{name} right answers", f"what is known: {shown}", right, len(demanded), "==")

    layers, width = reference.config.num_hidden_layers, reference.config.hidden_size
    sums = width**0.5 if reference.dtype == torch.float32 else 1.0
    bound = unit * (ROUNDED * layers) ** 0.5 * sums
    ids = [question.ids for question in questions]
    generator = torch.Generator().manual_seed(0)
    deviation = reference.get_input_embeddings().weight[:1000].float().std()
    queries = (torch.randn(QUERIES, width, generator=generator) * deviation).to(reference.dtype)
    cached = _condition(vlm, ids, queries)
    whole = torch.cat([_whole_pass(reference, one, queries) for one in ids])
    compared = f"one whole pass of transformers, {QUERIES} queries after {len(ids)} prompts"
    yield Row(f"{name} prefix cache", compared, _relative(cached, whole), bound)
    other = _relative(whole.roll(1, 0), whole)
    yield Row(
        f"{name} under another prompt", "the same outputs; must differ", other, 2 * bound, ">="
    )


@torch.inference_mode()
def _logits(reference: Any, vlm: QwenVL, ids: list[int]) -> float:
    tensor = torch.tensor([ids])
    expected = reference(input_ids=tensor).logits
    found = vlm.model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _answer(vlm: QwenVL, ids: list[int]) -> list[int]:
    tensor = torch.tensor([ids])
    mask = torch.ones_like(tensor)
    return vlm.generate_text(tensor, mask, None, None, max_new_tokens=NEW_TOKENS)[0].tolist()


def _reference_answer(reference: Any, vlm: QwenVL, ids: list[int]) -> list[int]:
    tensor = torch.tensor([ids])
    new = reference.generate(
        input_ids=tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=vlm.vocabulary.im_end,
        pad_token_id=vlm.vocabulary.pad,
    )
    return new[0, len(ids) :].tolist()


@torch.no_grad()
def _condition(vlm: QwenVL, ids: list[list[int]], queries: Tensor) -> Tensor:
    padded, mask = pad(ids, vlm.vocabulary.pad)
    shared = shared_tokens(ids, None)
    return vlm.condition(padded, mask, queries, num_shared_prefix_tokens=shared).hidden_states


@torch.no_grad()
def _whole_pass(reference: Any, ids: list[int], queries: Tensor) -> Tensor:
    prompt = reference.get_input_embeddings()(torch.tensor([ids]))
    embeddings = torch.cat([prompt, queries[None]], 1)
    output = reference.model(inputs_embeds=embeddings, use_cache=False)
    return output.last_hidden_state[:, len(ids) :]


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()
