"""Accuracy of edits in the shapes world.

A result counts only if it shows the whole edited scene: the requested change was made, and all
else, the background included, is unchanged. The edits are drawn in memory, in the order of the
evaluation shards, and neither of an edit's scenes is in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy
from torch import Tensor

from triptych.evaluation.shapes.common import (
    WORLD_SEED,
    ImageOptions,
    ShapesEvaluator,
    make_in_batches,
)
from triptych.evaluation.statistics import mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.shapes_world.checker import check, satisfies
from triptych.shapes_world.edits import EDITS, Edit
from triptych.shapes_world.shards import make_edit
from triptych.shapes_world.world import draw
from triptych.utils.errors import UserError
from triptych.utils.images import to_tensor


class EditEval(ShapesEvaluator):
    """The share of edits that were followed, by kind, their "mean", and its 95% interval from
    "low" to "high".

    Args:
        num_images: number of edits; the kinds come in turn.
        seed, batch_size, generation_config: see `ShapesEvaluator`.
    """

    def __init__(
        self,
        num_images: int = 200,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(num_images, seed, batch_size, generation_config)

    def __call__(self, model: Any) -> dict[str, float]:
        asked = edits(self.num_images)
        results = edit_for(model, asked, self.options)
        right = [check(each, edit.request) for each, edit in zip(results, asked, strict=True)]
        share = mean(right)
        low, high = wilson(share, len(right))
        return {**by_kind(asked, right), "mean": share, "low": low, "high": high}


def edit_for(
    model: Any,
    asked: Sequence[Edit],
    options: ImageOptions,
) -> numpy.ndarray:
    """The edited images, uint8 [N,48,48,3]; see `ImageOptions`."""

    def make(batch: range, seeds: list[int]) -> Tensor:
        sources = to_tensor([draw(asked[n].source) for n in batch])
        instructions = [asked[n].instruction for n in batch]
        return inference_of(model).edit(sources, instructions, seeds=seeds, config=options.config)

    return make_in_batches(make, len(asked), options)


@lru_cache(maxsize=4)
def edits(number: int) -> tuple[Edit, ...]:
    """The first `number` evaluation edits, the kinds in turn."""
    if number < 1:
        raise UserError(f"edits cannot be scored on {number} images; give 1 or more.")
    return tuple(make_edit("eval", index, WORLD_SEED) for index in range(number))


def edit_chance(num_images: int = 200) -> dict[str, float]:
    """Scores of models that do not look at the instruction, or at neither of the two.

    "source": the image is given back unchanged. "another": the instruction is ignored and another
    edit of the same image made, the mean over random ones of the same kind. "unrelated": a right
    result of another image's edit, the mean over all of them.
    """
    asked = edits(num_images)
    return {
        "source": mean(satisfies(edit.source, edit.request) for edit in asked),
        "another": mean(
            satisfies(other_edit(edit, number).target, edit.request)
            for number, edit in enumerate(asked)
        ),
        "unrelated": mean(
            satisfies(other.target, edit.request)
            for edit in asked
            for other in asked
            if other is not edit
        ),
    }


def other_edit(edit: Edit, number: int) -> Edit:
    """A random edit of the same kind and image, which `number` decides; it may be the same."""
    return EDITS[edit.kind](edit.source, numpy.random.default_rng([WORLD_SEED, number]))


def by_kind(asked: Sequence[Edit], right: Sequence[bool]) -> dict[str, float]:
    """The share of right ones of each kind that is there."""
    shares = {}
    for kind in EDITS:
        of_kind = [each for each, edit in zip(right, asked, strict=True) if edit.kind == kind]
        if of_kind:
            shares[kind] = mean(of_kind)
    return shares
