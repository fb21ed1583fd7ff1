"""Latent queries at several places of one prompt: one pass for all images of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.backbones.prompt_cache import causal_mask


@dataclass
class QueryGroups:
    """Groups of N queries, each of which continues its prompt [B,T] from a place of its own.

    A group attends to the prompt up to its place and causally to itself, never to another group:
    it computes what it would if the prompt ended at its place. Nothing synchronizes with the
    device.
    """

    places: Tensor
    """[B,G] int64, index of the last token of the prompt that each group attends to."""
    rows: Tensor
    """[R] int64, the groups that are wanted in the flattened [B*G]."""

    def repeat(self, queries: Tensor) -> Tensor:
        """The queries [B,N,D] of all groups, one after the other: [B,G*N,D]."""
        return queries.repeat(1, self.places.shape[1], 1)

    def positions(self, prompt_positions: Tensor, number: int) -> Tensor:
        """Positions [3,B,G*N] of `number` queries of each group, after that of its last token.

        Args:
            prompt_positions: [3,B,T]; those of text tokens are the same in all three.
        """
        batch, groups = self.places.shape
        last = prompt_positions.gather(2, self.places.expand(3, -1, -1))
        steps = 1 + torch.arange(number, device=last.device)
        return (last[..., None] + steps).reshape(3, batch, groups * number)

    def mask(self, attention_mask: Tensor, number: int) -> dict[str, Tensor]:
        """Attention mask bool [B,1,G*N,T+G*N] of the queries, `number` of each group."""
        batch, length = attention_mask.shape
        tokens = torch.arange(length, device=attention_mask.device)
        seen = (tokens <= self.places[..., None]) & attention_mask.bool()[:, None]  # [B,G,T]
        prompt = seen.repeat_interleave(number, 1)
        one = torch.ones(number, number, dtype=torch.bool, device=seen.device).tril()
        own = torch.block_diag(*[one] * self.places.shape[1]).expand(batch, -1, -1)
        return {"full_attention": torch.cat([prompt, own], 2)[:, None]}

    def whole_mask(self, attention_mask: Tensor, number: int) -> dict[str, Tensor]:
        """Attention mask bool [B,1,T+G*N,T+G*N] of prompts and queries in one sequence."""
        prompt = causal_mask(attention_mask, attention_mask.shape[1])["full_attention"]
        queries = self.mask(attention_mask, number)["full_attention"]
        unseen = prompt.new_zeros(*prompt.shape[:3], queries.shape[2])
        return {"full_attention": torch.cat([torch.cat([prompt, unseen], 3), queries], 2)}

    def take(self, states: Tensor) -> Tensor:
        """The wanted groups [R,N,D] of states [B,G*N,D]."""
        number = states.shape[1] // self.places.shape[1]
        return states.reshape(-1, number, states.shape[2])[self.rows]
