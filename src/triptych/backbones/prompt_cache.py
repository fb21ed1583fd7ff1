"""Key-value cache of the prompts that latent queries continue, and its attention masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def prompt_cache(
    language_model: nn.Module,
    prompts: Tensor,
    attention_mask: Tensor,
    *,
    positions: Tensor,
    num_shared_prefix_tokens: int,
) -> Any:
    """transformers' cache of the keys and values of prompts [B,T,D], padded by `attention_mask`.

    The tokens that all prompts begin with are computed once.
    """
    batch, length = attention_mask.shape
    shared, cache = num_shared_prefix_tokens, None
    with keys_and_values_only(language_model.layers[-1]):
        if shared:
            cache = language_model(
                inputs_embeds=prompts[:1, :shared],
                attention_mask={"full_attention": None},
                position_ids=positions[..., :1, :shared],
                use_cache=True,
            ).past_key_values
            cache.batch_repeat_interleave(batch)
        return language_model(
            inputs_embeds=prompts[:, shared:],
            attention_mask=causal_mask(attention_mask, length - shared),
            position_ids=positions[..., shared:],
            past_key_values=cache,
            use_cache=True,
        ).past_key_values


@contextmanager
def keys_and_values_only(layer: nn.Module) -> Iterator[None]:
    """Skip the feed-forward part of the last layer while the cache is filled: no key and no value
    depends on it. A compiled layer stays as it is: code compiled here might be reused later."""
    if "forward" in vars(layer) or layer._compiled_call_impl is not None:
        yield
        return
    layer.mlp.forward = torch.zeros_like
    try:
        yield
    finally:
        del layer.mlp.forward


def causal_mask(mask: Tensor, number: int) -> dict[str, Tensor]:
    """Attention mask of the last `number` of K tokens, bool [B,1,number,K]: causal, no padding.

    `mask` [B,K] is 1 on tokens, 0 on padding. It has the format of transformers, which would
    synchronize with the host to build its own.
    """
    tokens = torch.arange(mask.shape[1], device=mask.device)
    past = tokens <= tokens[-number:, None]
    return {"full_attention": past & mask.bool()[:, None, None]}
