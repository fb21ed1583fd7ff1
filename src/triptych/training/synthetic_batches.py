"""Batches of random tokens and images at a model's real shapes, on the CPU.

Under FakeTensorMode, what the host reads in a run (tokens, sample ids, grids) stays real, and
images, features and draws are fake: they take no memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from triptych.backbones.qwen2_5_vl_config import SPECIAL_IDS
from triptych.interfaces import IMAGE_GENERATION, LANGUAGE_MODELING, Batch
from triptych.interfaces.batch import IGNORED, label_indices
from triptych.training.prompt_counts import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    PromptCounts,
    generation_counts,
    understanding_counts,
)
from triptych.utils.rng import Draw

PREFIX_TOKENS = 23
"""Tokens of a chat template before the caption, which all prompts of a batch share."""


def stage_batches(
    model: Any,
    size: int,
    *,
    step: int = 0,
    edits: bool = False,
    stories: float = 0.0,
    **images: Any,
) -> dict[str, Batch]:
    """Return a batch of `size` prompts for each objective of the losses of a `UnifiedModule`.

    Args:
        edits: whether prompts of images to generate show an image each.
        stories: share of the prompts that are stories, see `prompt_counts`.
        images: `features` and `pixels` as of `caption_batch`.
    """
    objectives = {getattr(model, name).batch_objective for name in model.loss_weights}
    batches = {}
    if IMAGE_GENERATION in objectives:
        if stories:
            counts = generation_counts(model, edits, stories)
            made = drawing_batch(model, size, counts, step=step, **images)
        else:
            make = edit_batch if edits else caption_batch
            made = make(model, size, step=step, **images)
        batches[IMAGE_GENERATION] = made
    if LANGUAGE_MODELING in objectives:
        if stories:
            batches[LANGUAGE_MODELING] = answer_batch(
                model, size, understanding_counts(model, stories), step=step
            )
        else:
            batches[LANGUAGE_MODELING] = text_batch(model, size, step=step)
    return batches


def caption_batch(
    model: Any,
    size: int,
    *,
    step: int = 0,
    tokens: int = PROMPT_TOKENS,
    prefix: int = PREFIX_TOKENS,
    features: Tensor | None = None,
    pixels: bool = True,
) -> Batch:
    """Return captions with the images to generate, encode or decode.

    Args:
        tokens: number of tokens of a prompt, of which all prompts share the first `prefix`.
        features: [B,C,h,w] of the images, as cached.
        pixels: whether the images come along, uint8 [B,3,H,W].
    """
    draw = torch.Generator().manual_seed(step)
    shared = max(0, min(prefix, tokens - 1))
    with unset_fake_temporarily():
        ids = _words(model, (size, tokens), draw)
        ids[:, :shared] = ids[0, :shared].clone()
    images = _target_images(model, size, draw, features, pixels)
    return _batch(IMAGE_GENERATION, step, ids, num_shared_prefix_tokens=shared, **images)


def edit_batch(
    model: Any,
    size: int,
    *,
    step: int = 0,
    tokens: int = PROMPT_TOKENS,
    features: Tensor | None = None,
    pixels: bool = True,
) -> Batch:
    """Return prompts of `tokens` and an image each, with the images to generate.

    The generator sees the same images, if it takes sources.
    """
    draw = torch.Generator().manual_seed(step)
    ids, shown = _with_images(
        model, [1] * size, tokens + model.understanding.vlm.image_tokens(), draw
    )
    images = _target_images(model, size, draw, features, pixels)
    if model.generation.takes_source:
        shown["has_source"] = torch.ones(size, dtype=torch.bool)
        shown["source_pixels"] = _colours((size, 3, model.image_size, model.image_size), draw)
        shown["may_have_source"] = True
    return _batch(IMAGE_GENERATION, step, ids, **shown, **images)


def text_batch(
    model: Any,
    size: int,
    *,
    step: int = 0,
    tokens: int = PROMPT_TOKENS,
    answer: int = ANSWER_TOKENS,
) -> Batch:
    """Return conversations of `tokens` and an image each, the last `answer` of them to learn."""
    image = model.understanding.vlm.image_tokens()
    counts = PromptCounts(tokens + image, 0, shown=1.0, made=0.0, learned=answer)
    return answer_batch(model, size, counts, step=step)


def answer_batch(model: Any, size: int, counts: PromptCounts, *, step: int = 0) -> Batch:
    """Return `size` prompts with the last tokens to learn, as `counts` has them in the mean."""
    draw = torch.Generator().manual_seed(step)
    ids, shown = _with_images(model, _dealt(counts.shown, size), counts.tokens, draw)
    with unset_fake_temporarily():
        labels = ids.clone()
        for row, learned in zip(labels, _dealt(counts.learned, size), strict=True):
            row[:-learned] = IGNORED
        places = label_indices(labels)
    return _batch(LANGUAGE_MODELING, step, ids, labels=labels, label_indices=places, **shown)


def drawing_batch(
    model: Any,
    size: int,
    counts: PromptCounts,
    *,
    step: int = 0,
    features: Tensor | None = None,
    pixels: bool = True,
) -> Batch:
    """Return `size` prompts with several images to generate each, as `counts` has them in the mean.

    Args:
        features: [C,h,w] of each image, as cached.
        pixels: whether the images come along.
    """
    draw = torch.Generator().manual_seed(step)
    ids, shown = _with_images(model, _dealt(counts.shown, size), counts.tokens, draw)
    with unset_fake_temporarily():
        made = _dealt(counts.made, size)
        rows = [n * counts.groups + k for n, some in enumerate(made) for k in range(some)]
        shown["query_places"] = torch.full((size, counts.groups), counts.tokens - 1)
        shown["query_rows"] = torch.tensor(rows)
    number = len(rows)
    if features is not None:
        features = features.expand(number, *features.shape[-3:])
    images = _target_images(model, number, draw, features, pixels)
    if model.generation.takes_source:
        sources = round(counts.sources * size)
        with unset_fake_temporarily():
            shown["has_source"] = torch.arange(number) < sources
        side = model.image_size
        shown["source_pixels"] = _colours((sources, 3, side, side), draw)
        shown["may_have_source"] = True
    return _batch(IMAGE_GENERATION, step, ids, number=number, **shown, **images)


def _dealt(mean: float, prompts: int) -> list[int]:
    """Return whole numbers, one for each prompt, with a mean."""
    ends = [round(mean * number) for number in range(prompts + 1)]
    return [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _batch(
    objective: str, step: int, ids: Tensor, *, number: int | None = None, **fields: Any
) -> Batch:
    number = len(ids) if number is None else number
    with unset_fake_temporarily():
        numbers = torch.arange(number) + step * number
        keys = [str(each) for each in numbers.tolist()]
        return Batch(objective, keys, step, numbers, ids, torch.ones_like(ids), **fields)


def _target_images(
    model: Any, size: int, draw: torch.Generator, features: Tensor | None, pixels: bool
) -> dict[str, Any]:
    # as a DataModule has it: the encoder's size, or the VAE's where its images are larger
    shape = (size, 3, model.image_size, model.image_size)
    # before the images: a step on cached features has the draws of the live one
    draws = {each.stream: _drawn(each, size, draw) for each in model.random_draws()}
    return {
        "draws": draws,
        "target_pixels": _colours(shape, draw) if pixels else None,
        "target_features": features,
    }


def _colours(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def _drawn(wanted: Draw, size: int, draw: torch.Generator) -> Tensor:
    make = torch.randn if wanted.distribution == "normal" else torch.rand
    return make((size * wanted.repeats, *wanted.shape), generator=draw)


def _words(model: Any, shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Random tokens, none of them special: those lie together at an end of every vocabulary."""
    vocabulary = model.understanding.vlm.vocabulary
    special = [getattr(vocabulary, name) for name in SPECIAL_IDS]
    low, high = (0, min(special)) if min(special) else (max(special) + 1, vocabulary.rows)
    return torch.randint(low, high, shape, generator=draw)


def _with_images(
    model: Any, numbers: list[int], tokens: int, draw: torch.Generator
) -> tuple[Tensor, dict[str, Any]]:
    """Prompts of `tokens` that begin with images, and what `Batch` holds of these.

    Args:
        numbers: number of images of each prompt.
    """
    vlm = model.understanding.vlm
    side, vocabulary = vlm.image_size, vlm.vocabulary
    with unset_fake_temporarily():
        one, grid = vlm.image_inputs(_colours((1, 3, side, side), draw))
        image = [vocabulary.image_pad] * vlm.image_tokens()
        image = torch.tensor([vocabulary.vision_start, *image, vocabulary.vision_end])
        ids = _words(model, (len(numbers), tokens), draw)
        for row, number in zip(ids, numbers, strict=True):
            row[: number * len(image)] = image.repeat(number)
        grids = grid.repeat(sum(numbers), 1)
        positions = vlm.position_ids(ids, torch.ones_like(ids), grids)
    patches = torch.randn(sum(numbers) * len(one), one.shape[1], generator=draw)
    return ids, {
        "understanding_pixels": patches,
        "image_grid_thw": grids,
        "position_ids": positions,
        "may_show": True,
    }
