"""GenEval score of a folder of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.expected_images import SCORED, ExpectedImage, counts, opened, sizes
from triptych.evaluation.geneval.colours import ColourClassifier, crop
from triptych.evaluation.geneval.detection import DetectedObject, Detector
from triptych.evaluation.geneval.layout import (
    IMAGES_PER_PROMPT,
    PACKAGED,
    read_folder,
    read_prompts,
)
from triptych.evaluation.geneval.rules import OFFICIAL, Rules, check, objects_in
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap, wilson
from triptych.utils.errors import UserError


def score(
    folder: str | Path,
    detector: Detector,
    colours: ColourClassifier,
    *,
    prompts: str | Path = PACKAGED,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    rules: Rules = OFFICIAL,
    limit: int | None = None,
) -> Report:
    """GenEval score of a complete folder: share of correct images by task, and mean over tasks.

    Intervals of tasks are Wilson's, as if images were independent; the overall one resamples whole
    prompts.

    Args:
        folder: folder of images in the layout of `layout`.
        detector: object detector.
        colours: colour classifier.
        prompts: prompt file that the images were generated from.
        images_per_prompt: number of expected images per prompt.
        rules: thresholds; the default is the published ones.
        limit: maximum number of prompts; the first ones are taken.

    Raises:
        UserError: the prompt file is missing or has classes that the detector lacks; the folder is
            missing or was generated from other prompts.
    """
    folder, prompts = Path(folder), Path(prompts)
    entries = read_prompts(prompts)[:limit]
    _check_classes(entries, detector)
    samples = read_folder(folder, entries, images_per_prompt)
    for entry, some in zip(entries, samples, strict=True):
        for sample in some:
            if sample.state == SCORED and (image := opened(folder, sample)) is not None:
                right, sample.note = judge(image, entry, detector, colours, rules)
                sample.score = float(right)
    scores, intervals, numbers = summary([entry["tag"] for entry in entries], samples)
    flat = [sample for some in samples for sample in some]
    tags = [entry["tag"] for entry, some in zip(entries, samples, strict=True) for _ in some]
    return Report(
        "geneval",
        scores,
        f"{detector.name}; colours by {colours.name}; not the official GenEval detector",
        intervals,
        numbers,
        counts(flat),
        {
            "folder": str(folder),
            "prompts": prompts,
            "images_per_prompt": images_per_prompt,
            "limit": limit,
            "rules": asdict(rules),
            "sizes": sizes(flat),
        },
        [sample.item(tag=tag) for sample, tag in zip(flat, tags, strict=True)],
    )


def judge(
    image: Image.Image,
    entry: dict[str, Any],
    detector: Detector,
    colours: ColourClassifier,
    rules: Rules,
) -> tuple[bool, str]:
    """Whether an RGB image meets an entry of the prompt file, and the faults."""

    def colours_of(objects: Sequence[DetectedObject]) -> list[str]:
        return colours.classify([crop(image, one) for one in objects], objects[0].name)

    return check(objects_in(detector.detect(image), entry["tag"], rules), entry, colours_of, rules)


def summary(
    tags: Sequence[str], samples: Sequence[Sequence[ExpectedImage]]
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]:
    """Scores, intervals and counts by tag, and "overall": the mean of the tags' scores.

    "overall" is omitted while a tag has no score, as it would not be comparable.

    Args:
        tags: tags of the prompts, one each.
        samples: images of each prompt; those without a score are excluded.
    """
    prompts: dict[str, list[list[float]]] = defaultdict(list)
    for tag, some in zip(tags, samples, strict=True):
        if values := [sample.score for sample in some if sample.score is not None]:
            prompts[tag].append(values)
    groups = {tag: sum(clusters, []) for tag, clusters in prompts.items()}
    numbers = {tag: len(values) for tag, values in groups.items()}
    scores = {tag: sum(values) / len(values) for tag, values in groups.items()}
    intervals = {tag: wilson(scores[tag], numbers[tag]) for tag in scores}
    if set(groups) == set(tags):
        scores["overall"] = sum(scores.values()) / len(groups)
        intervals["overall"] = bootstrap(list(prompts.values()), [1 / len(groups)] * len(groups))
        numbers["overall"] = sum(numbers.values())
    return scores, intervals, numbers


def _check_classes(entries: Sequence[dict[str, Any]], detector: Detector) -> None:
    classes = {
        clause["class"] for e in entries for clause in [*e["include"], *e.get("exclude", [])]
    }
    if unknown := classes - detector.classes:
        raise UserError(
            f"the detector {detector.name} does not know {', '.join(sorted(unknown))}; give one "
            "that was trained on COCO's classes."
        )
