"""Diversity of the images of one prompt: a model that always paints the same has none."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn.functional import normalize

from triptych.evaluation.image_metrics.feature_space import FeatureSpace, extract
from triptych.evaluation.image_sources import ImageSource, count_states, read_images, source_name
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.utils.errors import UserError


def score(images: ImageSource, space: FeatureSpace, batch_size: int = 64) -> Report:
    """The mean distance between the images of a prompt, a mean over prompts.

    0 is one image over and over. A high figure is not a merit by itself: noise is diverse too.

    Args:
        images: images with their prompts, several for each; see `read_images`.
        space: feature space of distances. `EncoderSpace(..., pool="grid")` also sees where things
            are.
        batch_size: images at a time; affects only rounding, speed and memory.

    Raises:
        UserError: no prompt has two images that can be read.
    """
    found = extract(space, read_images(images), batch_size)
    rows = defaultdict(list)
    for row, entry in enumerate(found.entries):
        if entry.caption:
            rows[entry.caption].append(row)
        else:
            entry.state, entry.note = "without_prompt", "nothing says what it was made for"
    distances = {}
    for prompt, numbers in rows.items():
        if len(numbers) > 1:
            distances[prompt] = mean_distance(found.features[numbers])
        else:
            alone = found.entries[numbers[0]]
            alone.state, alone.note = "alone", "its prompt has no other image that can be read"
    if not distances:
        raise UserError(
            f"no prompt has two images that can be read in {source_name(images)}; make several "
            "for each."
        )
    states = [entry.state for entry in found.entries]
    return Report(
        benchmark="diversity",
        scores={"diversity": sum(distances.values()) / len(distances)},
        judged_by=f"cosine distance in {space.label}",
        intervals={"diversity": bootstrap([[[each] for each in distances.values()]], [1.0])},
        numbers={"diversity": len(distances)},
        counts={
            "asked": len(states) + len(found.left_out),
            "scored": states.count(""),
            **count_states(found.left_out),
            "without_prompt": states.count("without_prompt"),
            "alone": states.count("alone"),
            "prompts": len(distances),
        },
        settings={"folder": source_name(images), **space.settings},
        items=[
            entry.item(**({} if entry.state else {"score": distances[entry.caption]}))
            for entry in [*found.entries, *found.left_out]
        ],
    )


def mean_distance(features: Tensor) -> float:
    """Mean of 1 - cos over all pairs of different rows of [N,F]; from 0 to 2."""
    unit = normalize(features.double(), dim=1)
    distances = (1 - unit @ unit.T).clamp(min=0)  # rounding takes equal rows below
    number = len(features)
    return (distances.sum() - torch.trace(distances)).item() / (number * (number - 1))
