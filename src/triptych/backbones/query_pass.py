"""The pass of the latent queries through the language model, behind the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.backbones.prompt_cache import causal_mask, prompt_cache
from triptych.backbones.query_groups import QueryGroups
from triptych.interfaces import Condition


def condition(
    vlm: Any,  # a `QwenVL`, whose module imports this one
    input_ids: Tensor,
    attention_mask: Tensor,
    queries: Tensor,
    *,
    understanding_pixels: Tensor | None,
    image_grid_thw: Tensor | None,
    position_ids: Tensor | None,
    num_shared_prefix_tokens: int,
    query_places: Tensor | None,
    query_rows: Tensor | None,
) -> Condition:
    """Outputs (after the final norm) at `queries` [N,D], put after each prompt [B,T].

    Attention is causal, so the prompt does not see the queries: while the language model is
    frozen, the prompt runs without gradient into a key-value cache, the tokens that all rows
    share once, and only the queries carry gradient; the result and the queries' gradient are
    those of the whole pass, which is computed when the language model, or an adapter in it,
    trains. Each layer computes the prompt right before the queries, so that FSDP2 gathers it
    once for both. Logits are never computed. Nothing here synchronizes with the device, unless
    images need positions that are not in `position_ids`.

    Positions are explicit and one-dimensional, counted without the padding; also where the
    prompt holds images, as published, unless `image_positions` is "grid". With `query_places`
    they go on from the token there, see `QueryGroups`.
    """
    language_model = vlm.model.model.language_model
    batch, length = input_ids.shape
    number = len(queries)
    queries = queries.to(vlm.model.dtype).expand(batch, -1, -1)
    images = understanding_pixels is not None
    starts = attention_mask.sum(1, keepdim=True)
    steps = torch.arange(max(length, number), device=input_ids.device)
    prompt_positions, query_positions = (
        steps[:length].expand(3, batch, -1),
        (starts + steps[:number]).expand(3, -1, -1),
    )
    if images and len(image_grid_thw) and vlm.image_positions == "grid":
        if position_ids is None:
            position_ids = vlm.position_ids(input_ids, attention_mask, image_grid_thw)
        prompt_positions = position_ids
        # An image takes fewer positions than tokens. Those of padding are 0.
        ends = prompt_positions.amax((0, 2))[:, None] + 1
        query_positions = (ends + steps[:number]).expand(3, -1, -1)
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, number)], 1)
    query_mask = partial(causal_mask, mask, number)
    whole_mask = partial(causal_mask, mask, length + number)
    groups = None
    if query_places is not None:
        groups = QueryGroups(query_places, query_rows)
        queries = groups.repeat(queries)
        query_positions = groups.positions(prompt_positions, number)
        query_mask = partial(groups.mask, attention_mask, number)
        whole_mask = partial(groups.whole_mask, attention_mask, number)
    learning = vlm.model.model if images else language_model

    if torch.is_grad_enabled() and any(p.requires_grad for p in learning.parameters()):
        prompt = vlm.embed(input_ids, understanding_pixels, image_grid_thw)
        states = language_model(
            inputs_embeds=torch.cat([prompt, queries], 1),
            attention_mask=whole_mask(),
            position_ids=torch.cat([prompt_positions, query_positions], -1),
            use_cache=False,
        ).last_hidden_state[:, length:]
        return Condition(states if groups is None else groups.take(states))

    with torch.no_grad():
        prompt = vlm.embed(input_ids, understanding_pixels, image_grid_thw)
    with prompt_cache(
        language_model,
        prompt,
        attention_mask,
        positions=prompt_positions,
        num_shared_prefix_tokens=num_shared_prefix_tokens,
    ) as cache:
        states = language_model(
            inputs_embeds=queries,
            attention_mask=query_mask(),
            position_ids=query_positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return Condition(states if groups is None else groups.take(states))
