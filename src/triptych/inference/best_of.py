"""Best of N: several candidates of each image, of which a ranker keeps one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_batches import ImageBatches, Progress
from triptych.inference.image_requests import ImageRequest
from triptych.inference.model_ranker import ModelRanker
from triptych.interfaces import Ranker, Source, as_ranker, ranked
from triptych.utils.errors import UserError

SEED_STEP = 1 << 40
"""Between the seeds of two candidates of an image: candidates of images whose own seeds lie closer
share no noise. A thousand of them stay below 2**53, up to which JavaScript counts exactly."""


@dataclass
class Best:
    """The best candidate of each image of a call."""

    images: Tensor
    """uint8 [B,3,H,W]"""
    seeds: list[int]
    """Seed of that candidate: as the seed of an image without candidates it gives this image."""
    scores: list[float]


def candidate_seed(seed: int, candidate: int) -> int:
    """Seed of candidate 0, 1, ... of an image; candidate 0 has the seed of the image itself."""
    return (seed + candidate * SEED_STEP) % (1 << 63)


def ranker_for(model: Any, given: Any, prompts: Sequence[str]) -> Ranker:
    """The given ranker, by default the model itself, which has accepted the prompts.

    Raises:
        UserError: it is no ranker, the model cannot rank, or a prompt cannot be ranked.
    """
    ranker = ModelRanker(model) if given is None else as_ranker(given)
    ranker.check(list(dict.fromkeys(prompts)))
    return ranker


def best_of(
    generate: Callable[[list[int], list[int]], Tensor],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_candidates: int,
    ranker: Ranker,
    batch_size: int,
) -> Best:
    """Generate the candidates of images and keep the best of each; of equal ones the first.

    Candidates of an image follow each other, and the batches continue over images, so that few
    images fill a batch as well. At most as many candidates are held as there are images, rounded
    up to whole batches.

    Args:
        generate: function of (indices of images, seeds) that makes one candidate of each index,
            uint8 [b,3,H,W].
        prompts, seeds: those of the images.
        batch_size: maximum number of images that are ranked at a time.
    """
    number = len(seeds)
    best = Best(torch.empty(0), list(seeds), [float("-inf")] * number)
    rows: list[Tensor | None] = [None] * number
    candidates = [
        (i, candidate_seed(s, k)) for i, s in enumerate(seeds) for k in range(num_candidates)
    ]
    portion = -(-number // batch_size) * batch_size
    for at in range(0, len(candidates), portion):
        owners, drawn = map(list, zip(*candidates[at : at + portion], strict=True))
        pixels = generate(owners, drawn)
        scores: list[float] = []
        for start in range(0, len(owners), batch_size):
            batch = slice(start, start + batch_size)
            scores += ranked(ranker, pixels[batch], [prompts[i] for i in owners[batch]])
        for image, seed, score, row in zip(owners, drawn, scores, pixels, strict=True):
            if rows[image] is None or score > best.scores[image]:
                best.scores[image], best.seeds[image], rows[image] = score, seed, row.clone()
    best.images = torch.stack(rows)  # type: ignore[arg-type]
    return best


def ranker_of_call(
    model: Any, config: GenerationConfig, given: Any, prompts: Sequence[str]
) -> Ranker | None:
    """`ranker_for` a call of the pipeline; None if it ranks nothing."""
    if config.candidates == 1 and given is None:
        return None
    return ranker_for(model, given, prompts)


def generate_best(
    batches: ImageBatches,
    conditions: Tensor,
    requests: list[ImageRequest],
    ranker: Ranker | None,
    *,
    source: Source | None = None,
) -> tuple[Tensor, list[ImageRequest]]:
    """Images uint8 [B,3,H,W] of a call, with its progress, and the requests with their seeds.

    With a ranker these are the best candidates; without, the images that were requested.
    """
    if ranker is None:
        return batches.generate(conditions, requests, source), requests
    number, size = batches.config.candidates, batches.batch_size
    portions = -(-len(requests) * number // (-(-len(requests) // size) * size))
    done = 0

    def generate(owners: list[int], seeds: list[int]) -> Tensor:
        nonlocal done
        callback = batches.callback and _of_images(batches.callback, owners, done, portions)
        done += 1
        some = [replace(requests[i], seed=seed) for i, seed in zip(owners, seeds, strict=True)]
        return replace(batches, callback=callback).generate(conditions, some, source)

    best = best_of(
        generate,
        [each.prompt for each in requests],
        [each.seed for each in requests],
        num_candidates=number,
        ranker=ranker,
        batch_size=size,
    )
    made = [
        replace(request, seed=seed, rank={"score": score, "ranker": ranker.name})
        for request, seed, score in zip(requests, best.seeds, best.scores, strict=True)
    ]
    return best.images, made


def _of_images(
    callback: Callable[[Progress], Any], owners: list[int], portion: int, portions: int
) -> Callable[[Progress], None]:
    """Callback of a portion of candidates; it reports the images that they belong to.

    A preview shows the first candidate in the batch of each.
    """

    def on_step(progress: Progress) -> None:
        owned = [owners[row] for row in progress.images]
        images = range(owned[0], owned[-1] + 1)

        def preview() -> list[Any]:
            shown = progress.preview()
            return [shown[owned.index(image)] for image in images]

        callback(
            replace(progress, images=images, preview=preview, portion=portion, portions=portions)
        )

    return on_step


def refuse_unranked_edits(num_candidates: int, ranker: Any) -> None:
    """Refuse candidates of edits without a ranker: the model is asked about captions only.

    Raises:
        UserError: there are several candidates, and no ranker.
    """
    if num_candidates > 1 and ranker is None:
        raise UserError(
            "the model ranks images of captions, not edits; leave num_candidates out, or give a "
            "ranker."
        )
