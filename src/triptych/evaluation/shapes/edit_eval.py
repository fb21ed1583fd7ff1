"""How often a model changes a picture of the shapes world as an instruction says.

A result counts only if it shows the whole edited scene: what was to change has changed, and all
else, the background included, has not. The edits are drawn in memory, in the order of the
evaluation shards, and neither of an edit's scenes is in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy

from triptych.evaluation.shapes.common import (
    SEEDS,
    WORLD_SEED,
    batches,
    mean,
    to_arrays,
    to_tensor,
    wilson,
)
from triptych.interfaces import Evaluator
from triptych.shapes_world.checker import check, satisfies
from triptych.shapes_world.edits import EDITS, Edit
from triptych.shapes_world.shards import make_edit
from triptych.shapes_world.world import draw
from triptych.utils.errors import UserError


class EditEval(Evaluator):
    """The share of edits that were followed, by kind, their "mean", and its 95% interval from
    "low" to "high".

    Args:
        images: number of edits; the kinds come in turn.
        seed: of the noise that the pictures start from.
        batch_size: pictures at a time.
        steps, guidance: of the sampler; null takes the model's own.
    """

    parts = ("understanding", "generation", "decoding")

    def __init__(
        self,
        images: int = 200,
        seed: int = 0,
        batch_size: int = 64,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        self.images, self.seed, self.batch_size = images, seed, batch_size
        self.steps, self.guidance = steps, guidance

    def __call__(self, model: Any) -> dict[str, float]:
        asked = edits(self.images)
        options = (self.batch_size, self.seed, self.steps, self.guidance)
        results = edit_for(model, asked, *options)
        right = [check(each, edit.request) for each, edit in zip(results, asked, strict=True)]
        share = mean(right)
        low, high = wilson(share, len(right))
        return {**by_kind(asked, right), "mean": share, "low": low, "high": high}


def edit_for(
    model: Any,
    asked: Sequence[Edit],
    batch_size: int = 64,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    numbers: Sequence[int] | None = None,
) -> numpy.ndarray:
    """The edited pictures, uint8 [N,48,48,3].

    Args:
        numbers: of the edits, from 0 on if None: their noise follows from `seed` and these.
    """
    numbers = range(len(asked)) if numbers is None else numbers
    return to_arrays(
        model.edit(
            to_tensor([draw(asked[n].source) for n in batch]),
            [asked[n].instruction for n in batch],
            seeds=[seed * SEEDS + numbers[n] for n in batch],
            steps=steps,
            guidance=guidance,
        )
        for batch in batches(len(asked), batch_size)
    )


@lru_cache(maxsize=4)
def edits(number: int) -> tuple[Edit, ...]:
    """The first `number` evaluation edits, the kinds in turn."""
    if number < 1:
        raise UserError(f"edits cannot be scored on {number} pictures; give 1 or more.")
    return tuple(make_edit("eval", index, WORLD_SEED) for index in range(number))


def edit_chance(images: int = 200) -> dict[str, float]:
    """What models score that do not look at the instruction, or at neither of the two.

    "source": the picture is given back unchanged. "another": the instruction is ignored and another
    edit of the same picture made, the mean over random ones of the same kind. "unrelated": a right
    result of another picture's edit, the mean over all of them.
    """
    asked = edits(images)
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
    """A random edit of the same kind and picture, which `number` decides; it may be the same."""
    return EDITS[edit.kind](edit.source, numpy.random.default_rng([WORLD_SEED, number]))


def by_kind(asked: Sequence[Edit], right: Sequence[bool]) -> dict[str, float]:
    """The share of right ones of each kind that is there."""
    shares = {}
    for kind in EDITS:
        of_kind = [each for each, edit in zip(right, asked, strict=True) if edit.kind == kind]
        if of_kind:
            shares[kind] = mean(of_kind)
    return shares
