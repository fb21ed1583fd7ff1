"""Batches of random tokens and images at a model's real shapes, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.backbones.qwen2_5_vl_config import SPECIAL_IDS
from triptych.interfaces import IMAGE_GENERATION, LANGUAGE_MODELING, Batch

TEMPLATE = 23  # tokens that all prompts share
CAPTION = 136  # tokens of a prompt, the template included
ANSWER = 64  # tokens of text after an image that is read


def caption_batch(
    model: Any,
    size: int,
    *,
    step: int = 0,
    tokens: int = CAPTION,
    features: Tensor | None = None,
    images: bool = True,
) -> Batch:
    """A batch of the image losses: prompts int64 [size,tokens], images uint8 or `features`."""
    draw = torch.Generator().manual_seed(step)
    ids = _words(model, (size, tokens), draw)
    shared = min(TEMPLATE, tokens - 1)
    ids[:, :shared] = ids[0, :shared].clone()
    return _image_batch(model, ids, draw, step, shared=shared, features=features, images=images)


def edit_batch(model: Any, size: int, step: int = 0) -> Batch:
    """A batch of the generation loss whose prompts show an image each."""
    draw = torch.Generator().manual_seed(step)
    ids, shown = _with_images(model, size, CAPTION, draw)
    return _image_batch(model, ids, draw, step, **shown)


def text_batch(model: Any, size: int, step: int = 0) -> Batch:
    """A batch of the understanding loss: an image and an answer of ANSWER tokens each."""
    draw = torch.Generator().manual_seed(step)
    ids, shown = _with_images(model, size, ANSWER, draw)
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    mask = torch.ones_like(ids)
    return Batch(LANGUAGE_MODELING, *_identity(size, step), ids, mask, labels=labels, **shown)


def _image_batch(
    model: Any,
    ids: Tensor,
    draw: torch.Generator,
    step: int,
    *,
    shared: int = 0,
    features: Tensor | None = None,
    images: bool = True,
    **shown: Any,
) -> Batch:
    # as a DataModule has it: the encoder's size, or the VAE's where its images are larger
    side = model.image_size
    pixels = torch.randint(0, 256, (len(ids), 3, side, side), generator=draw, dtype=torch.uint8)
    return Batch(
        IMAGE_GENERATION,
        *_identity(len(ids), step),
        ids,
        torch.ones_like(ids),
        num_shared_prefix_tokens=shared,
        target_pixels=pixels if images else None,
        target_features=features,
        **shown,
    )


def _identity(size: int, step: int) -> tuple[list[str], int, Tensor]:
    numbers = torch.arange(size) + step * size
    return [str(number) for number in numbers.tolist()], step, numbers


def _words(model: Any, shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Random tokens, none of them special: those lie together at an end of every vocabulary."""
    vocabulary = model.understanding.vlm.vocabulary
    special = [getattr(vocabulary, name) for name in SPECIAL_IDS]
    low, high = (0, min(special)) if min(special) else (max(special) + 1, vocabulary.rows)
    return torch.randint(low, high, shape, generator=draw)


def _with_images(
    model: Any, size: int, tokens: int, draw: torch.Generator
) -> tuple[Tensor, dict[str, Any]]:
    """Prompts that each begin with an image, and what `Batch` holds of the images."""
    vlm = model.understanding.vlm
    side, count = vlm.image_size, vlm.image_tokens()
    squares = torch.randint(0, 256, (size, 3, side, side), generator=draw, dtype=torch.uint8)
    patches, grids = vlm.image_inputs(squares)
    start, end = vlm.vocabulary.vision_start, vlm.vocabulary.vision_end
    image = torch.tensor([start, *[vlm.vocabulary.image_pad] * count, end])
    ids = torch.cat([image.expand(size, -1), _words(model, (size, tokens), draw)], 1)
    return ids, {"understanding_pixels": patches, "image_grid_thw": grids, "may_show": True}
