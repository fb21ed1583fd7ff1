"""Batches of a stage's losses, for a step on fake tensors."""

from __future__ import annotations

import torch

from triptych.cli.plan.cost import ANSWER_TOKENS, PROMPT_TOKENS
from triptych.interfaces import IMAGE_GENERATION, LANGUAGE_MODELING, Batch
from triptych.interfaces.batch import IGNORED
from triptych.modules import UnifiedModule

PREFIX_TOKENS = 23
"""Tokens of a chat template before the caption, which all prompts of a batch share."""


def stage_batches(model: UnifiedModule, batch_size: int) -> dict[str, Batch]:
    """Return a batch for each objective of the stage's losses, with images to encode."""
    objectives = {getattr(model, name).batch_objective for name in model.loss_weights}
    makers = {IMAGE_GENERATION: image_batch, LANGUAGE_MODELING: text_batch}
    return {name: makers[name](model, batch_size) for name in sorted(objectives)}


def image_batch(model: UnifiedModule, batch_size: int) -> Batch:
    """Return captions of PROMPT_TOKENS tokens with the images to generate, encode or decode."""
    ids = torch.ones(batch_size, PROMPT_TOKENS, dtype=torch.long)
    side = model.image_size
    return Batch(
        IMAGE_GENERATION,
        [str(number) for number in range(batch_size)],
        1,
        torch.arange(batch_size),
        ids,
        torch.ones_like(ids),
        num_shared_prefix_tokens=PREFIX_TOKENS,
        target_pixels=torch.zeros(batch_size, 3, side, side, dtype=torch.uint8),
    )


def text_batch(model: UnifiedModule, batch_size: int) -> Batch:
    """Return conversations of an image and an answer of ANSWER_TOKENS tokens."""
    vlm = model.understanding.vlm
    length = vlm.image_tokens() + PROMPT_TOKENS
    ids = torch.ones(batch_size, length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -ANSWER_TOKENS:] = 1
    side = vlm.image_size // vlm.vision.patch_size
    patch = 3 * vlm.vision.temporal_patch_size * vlm.vision.patch_size**2
    return Batch(
        LANGUAGE_MODELING,
        [str(number) for number in range(batch_size)],
        1,
        torch.arange(batch_size),
        ids,
        torch.ones_like(ids),
        labels=labels,
        understanding_pixels=torch.zeros(batch_size * side * side, patch),
        image_grid_thw=torch.tensor([[1, side, side]] * batch_size),
        may_show=True,
    )
