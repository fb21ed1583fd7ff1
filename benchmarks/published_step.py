"""The published training step of stage 2 as a reference, reimplemented.

Every token of every row goes through the language model with gradient, each layer computed again in
the backward pass; logits of all positions and their cross entropy are made and thrown away; the
DiT's layers are computed again too; images go through the encoder whenever they are met.
The loss and its gradients are those of `GenerationModule.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from triptych.backbones import QwenVL
from triptych.backbones.prompt_cache import causal_mask
from triptych.interfaces import Batch, Condition
from triptych.modules import UnifiedModule
from triptych.prompts import IGNORED


class WholePass:
    """Stands in for the VLM: rows [prompt, queries, padding], all of it with gradient."""

    def __init__(self, qwen: QwenVL) -> None:
        self.model = qwen.model
        self.discarded: Tensor | None = None
        """The cross entropy of the last rows, which nothing learns from."""

    def condition(
        self, input_ids: Tensor, attention_mask: Tensor, queries: Tensor, *_: object, **__: object
    ) -> Condition:
        """Outputs [B,N,D] at `queries` [N,D] after each right-padded prompt [B,T]."""
        language_model = self.model.model.language_model
        batch, length = input_ids.shape
        number, places = len(queries), torch.arange(length + len(queries), device=input_ids.device)
        starts = attention_mask.sum(1, keepdim=True)
        query = places - starts  # [B,T+N], number of the query at each place
        asked = (query >= 0) & (query < number)
        ids = torch.nn.functional.pad(input_ids, (0, number))
        rows = torch.where(
            asked[..., None],
            queries.to(self.model.dtype)[query.clamp(0, number - 1)],
            language_model.embed_tokens(ids),
        )
        states = language_model(
            inputs_embeds=rows,
            attention_mask=causal_mask((query < number).long(), length + number),
            position_ids=places.expand(batch, -1),
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(states).float()
        labels = torch.where(query < 0, ids, IGNORED)[:, 1:]
        self.discarded = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        rows_of = torch.arange(batch, device=states.device)[:, None]
        return Condition(states[rows_of, starts + places[:number]])


def _twice(forward: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Tensor:
    """A layer's forward pass, made again to its end in the backward pass, as torch 2.3 did."""
    with set_checkpoint_early_stop(False):
        return checkpoint(forward, *inputs, use_reentrant=False, **options)


@contextmanager
def recomputing(model: UnifiedModule) -> Iterator[None]:
    """The layers of language model and DiT keep nothing for the backward pass."""
    vlm, dit = model.understanding.vlm, model.generation.dit.dit
    layers = [*vlm.model.model.language_model.layers, *dit.layers]
    for layer in layers:
        layer.forward = partial(_twice, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def published_loss(model: UnifiedModule, batch: Batch) -> Tensor:
    """The loss of a text_to_image batch; call its `backward` inside `recomputing` too."""
    vlm = model.understanding.vlm
    with patch.object(vlm, "condition", WholePass(vlm).condition):
        return model.generation.step(batch)[0]
