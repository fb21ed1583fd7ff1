"""Diversity of the images of one prompt: 0 for a model that always generates the same image."""

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
    """Mean over prompts of the mean distance between the images of a prompt.

    A high value is not a merit by itself: noise is diverse too.

    Args:
        images: images with their prompts, several for each; see `read_images`.
        space: feature space of the distances. `EncoderSpace(..., pool="grid")` also encodes
            positions.
        batch_size: number of images at a time; affects only rounding, speed and memory.

    Raises:
        UserError: no prompt has two readable images.
    """
    extracted = extract(space, read_images(images), batch_size)
    rows = defaultdict(list)
    for row, entry in enumerate(extracted.entries):
        if entry.caption:
            rows[entry.caption].append(row)
        else:
            entry.state, entry.note = "without_prompt", "nothing says what it was made for"
    distances = {}
    for prompt, numbers in rows.items():
        if len(numbers) > 1:
            distances[prompt] = mean_distance(extracted.features[numbers])
        else:
            single = extracted.entries[numbers[0]]
            single.state, single.note = "alone", "its prompt has no other image that can be read"
    if not distances:
        raise UserError(
            f"no prompt has two images that can be read in {source_name(images)}; make several "
            "for each."
        )
    states = [entry.state for entry in extracted.entries]
    return Report(
        benchmark="diversity",
        scores={"diversity": sum(distances.values()) / len(distances)},
        judged_by=f"cosine distance in {space.label}",
        intervals={"diversity": bootstrap([[[each] for each in distances.values()]], [1.0])},
        numbers={"diversity": len(distances)},
        counts={
            "expected": len(states) + len(extracted.excluded),
            "scored": states.count(""),
            **count_states(extracted.excluded),
            "without_prompt": states.count("without_prompt"),
            "alone": states.count("alone"),
            "prompts": len(distances),
        },
        settings={"folder": source_name(images), **space.settings},
        items=[
            entry.item(**({} if entry.state else {"score": distances[entry.caption]}))
            for entry in [*extracted.entries, *extracted.excluded]
        ],
    )


def mean_distance(features: Tensor) -> float:
    """Mean of 1 - cos over all pairs of different rows [N,F]; from 0 to 2."""
    unit = normalize(features.double(), dim=1)
    distances = (1 - unit @ unit.T).clamp(min=0)  # rounding makes equal rows negative
    number = len(features)
    return (distances.sum() - torch.trace(distances)).item() / (number * (number - 1))
