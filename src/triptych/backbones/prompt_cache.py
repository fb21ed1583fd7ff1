"""Key-value cache of the prompts that latent queries continue, and its attention masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@contextmanager
def prompt_cache(
    language_model: nn.Module,
    prompts: Tensor,
    attention_mask: Tensor,
    *,
    positions: Tensor,
    num_shared_prefix_tokens: int,
) -> Iterator[DynamicCache]:
    """Cache of the keys and values of prompts [B,T,D], padded by `attention_mask`; empty at first.

    Inside of the context, each layer that is called with the cache fills its part of it just before
    it computes, without gradient: whatever brings the parameters of a layer to the device (FSDP2
    gathers them) does it once for the prompts and for what continues them. The tokens that all
    prompts begin with are computed once.

    Args:
        positions: int64 [3,B,T], or the shape that the model's rotary embedding takes.
    """
    batch, length = attention_mask.shape
    cache = DynamicCache(config=language_model.config)
    segments = []
    shared = num_shared_prefix_tokens
    with torch.no_grad():
        if shared:
            states, places = prompts[:1, :shared], positions[..., :1, :shared]
            angles = language_model.rotary_emb(states, places)
            segments.append(_Segment(states, angles, None, repeats=batch))
        states, places = prompts[:, shared:], positions[..., shared:]
        mask = causal_mask(attention_mask, length - shared)["full_attention"]
        segments.append(_Segment(states, language_model.rotary_emb(states, places), mask))
    last = language_model.layers[-1]

    @torch.no_grad()
    def fill(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is cache:
            with keys_and_values_only(layer, layer is last):
                for segment in segments:
                    segment.run(layer, kwargs)

    # FSDP2's own hook, which gathers, is older and comes first
    hooks = [
        layer.register_forward_pre_hook(fill, with_kwargs=True) for layer in language_model.layers
    ]
    try:
        yield cache
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Segment:
    """Tokens of the prompts on their way through the layers."""

    states: Tensor
    """[B,T,D]"""
    angles: tuple[Tensor, Tensor]
    """Cosine and sine of their rotary positions."""
    mask: Tensor | None
    """bool [B,1,T,K] over all tokens up to the last of these; None is causal."""
    repeats: int = 1
    """Number of prompts that have these tokens in common."""

    def run(self, layer: nn.Module, kwargs: dict[str, Any]) -> None:
        """Compute a layer, which adds to the cache of `kwargs`, the arguments of its own call."""
        own = {"attention_mask": self.mask, "position_embeddings": self.angles}
        self.states = layer.forward(self.states, **{**kwargs, **own})
        if self.repeats > 1:
            cache = kwargs["past_key_values"]
            cache.layers[layer.self_attn.layer_idx].batch_repeat_interleave(self.repeats)


@contextmanager
def keys_and_values_only(layer: nn.Module, when: bool = True) -> Iterator[None]:
    """Skip the feed-forward part of the last layer while the cache is filled: no key and no value
    depends on it. A compiled layer stays as it is: code compiled here might be reused later."""
    if not when or "forward" in vars(layer) or layer._compiled_call_impl is not None:
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
