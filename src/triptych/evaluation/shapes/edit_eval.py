"""Accuracy of edits in the shapes world.

A result is correct only if it shows the whole edited scene: the requested change, and everything
else, background included, unchanged. The edits are drawn in memory, in the order of the evaluation
shards, and neither scene of an edit is in the training data.
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
    generate_in_batches,
)
from triptych.evaluation.statistics import mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.shapes_world.checker import check, clear_shapes, satisfies
from triptych.shapes_world.edits import EDITS, Edit
from triptych.shapes_world.shards import make_edit
from triptych.shapes_world.world import draw
from triptych.utils.errors import UserError
from triptych.utils.images import to_tensor


class EditEval(ShapesEvaluator):
    """Share of correct edits by kind, their "mean", and its 95% interval from "low" to "high".

    "kept" is the share of the shapes which the edits do not touch that are still in their places
    with the same looks, whether the rest is right or not.

    Args:
        num_images: number of edits; the kinds alternate.
        seed, batch_size, generation_config: arguments of `ImageEvaluator`.
    """

    parts = (*ShapesEvaluator.parts, "vision_tower")

    def __init__(
        self,
        num_images: int = 200,
        *,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(
            num_images, seed=seed, batch_size=batch_size, generation_config=generation_config
        )

    def __call__(self, model: Any) -> dict[str, float]:
        samples = edits(self.num_images)
        images = edit_for(model, samples, self.options)
        right = [check(image, edit.request) for image, edit in zip(images, samples, strict=True)]
        share = mean(right)
        low, high = wilson(share, len(right))
        shapes = [kept(image, edit) for image, edit in zip(images, samples, strict=True)]
        scores = {**by_kind(samples, right), "mean": share, "low": low, "high": high}
        return scores | kept_share(shapes)


def kept(image: numpy.ndarray, edit: Edit) -> list[bool]:
    """Whether each shape that an edit does not touch is the same in an image uint8 [48,48,3]."""
    shown = clear_shapes(image)
    return [shape in shown for shape in edit.untouched]


def kept_share(shapes: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Share "kept" of all shapes of all edits; empty if the edits leave no shape alone."""
    every = [each for of_edit in shapes for each in of_edit]
    return {"kept": mean(every)} if every else {}


def edit_for(model: Any, samples: Sequence[Edit], options: ImageOptions) -> numpy.ndarray:
    """Generate the edited images, uint8 [N,48,48,3]; see `ImageOptions`."""

    def generate(batch: range, seeds: list[int]) -> Tensor:
        sources = to_tensor([draw(samples[n].source) for n in batch])
        instructions = [samples[n].instruction for n in batch]
        return inference_of(model).edit(sources, instructions, seeds=seeds, config=options.config)

    return generate_in_batches(generate, len(samples), options)


@lru_cache(maxsize=4)
def edits(number: int) -> tuple[Edit, ...]:
    """The first `number` evaluation edits; the kinds alternate."""
    if number < 1:
        raise UserError(f"edits cannot be scored on {number} images; give 1 or more.")
    return tuple(make_edit("eval", index, WORLD_SEED) for index in range(number))


def edit_chance(num_images: int = 200) -> dict[str, float]:
    """Scores of models that ignore the instruction, or both instruction and image.

    "source": the image is returned unchanged. "another": another edit of the same image, random and
    of the same kind. "unrelated": the correct result of another image's edit, averaged over all of
    them.
    """
    samples = edits(num_images)
    return {
        "source": mean(satisfies(edit.source, edit.request) for edit in samples),
        "another": mean(
            satisfies(other_edit(edit, number).target, edit.request)
            for number, edit in enumerate(samples)
        ),
        "unrelated": mean(
            satisfies(other.target, edit.request)
            for edit in samples
            for other in samples
            if other is not edit
        ),
    }


def other_edit(edit: Edit, number: int) -> Edit:
    """A random edit of the same kind and image, seeded by `number`; may equal `edit`."""
    return EDITS[edit.kind](edit.source, numpy.random.default_rng([WORLD_SEED, number]))


def by_kind(samples: Sequence[Edit], right: Sequence[bool]) -> dict[str, float]:
    """Share of correct edits of each kind in `samples`."""
    shares = {}
    for kind in EDITS:
        of_kind = [each for each, edit in zip(right, samples, strict=True) if edit.kind == kind]
        if of_kind:
            shares[kind] = mean(of_kind)
    return shares
