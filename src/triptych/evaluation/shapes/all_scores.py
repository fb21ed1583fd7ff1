"""Every score of the shapes world as single verdicts, which processes can share out.

Work is cut into batches that depend only on the settings; a process takes whole ones, so that the
verdicts are the same bit by bit however many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from triptych.evaluation.image_cache import ImageCache
from triptych.evaluation.report import Report, nested
from triptych.evaluation.shapes.common import SEEDS, ImageOptions, batches
from triptych.evaluation.shapes.edit_eval import by_kind, edit_chance, edit_for, edits
from triptych.evaluation.shapes.shape_eval import (
    EDITS,
    QUESTIONS_PER_IMAGE,
    answers_for,
    ask_about,
    by_type,
    chance,
    examples,
    generate_for,
    reconstruct_for,
)
from triptych.evaluation.statistics import bootstrap, mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.shapes_world.captions import request_of
from triptych.shapes_world.checker import answer_is_right, by_task, check
from triptych.utils.errors import UserError

SPLITS = {"shape_eval": "eval", "shape_eval_unseen": "unseen"}
"""Score -> the captions that it is about."""

ItemScore = tuple[str, int, int, bool]
"""(score, copy, number of the item, whether it is right)."""


@dataclass(frozen=True)
class ScoringPlan:
    """Scoring plan; the batch size decides no score, but how images are rounded."""

    num_images: int = 600
    """Number of captions, reconstructions and half of the questions; edits are EDITS at most."""
    per_caption: int = 1
    """Images for each caption: those of `seed`, of `seed` + 1, and so on."""
    seed: int = 0
    batch_size: int = 64
    generation_config: GenerationConfig = GenerationConfig()

    def __post_init__(self) -> None:
        if self.num_images < 2:  # chance is the image of another caption
            raise UserError(
                f"the shapes world cannot be scored on {self.num_images} image; give 2."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All values, those of the images among them."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | own.pop("generation_config").settings

    @property
    def sizes(self) -> dict[str, int]:
        """Items of each score, of one copy."""
        return {
            "shape_eval": self.num_images,
            "shape_eval_unseen": self.num_images,
            "reconstruction": self.num_images,
            "question_answering": self.num_images * QUESTIONS_PER_IMAGE,
            "edits": min(self.num_images, EDITS),
        }

    def work(self) -> Iterator[tuple[str, int, range]]:
        """(score, copy, numbers of the items) of every batch."""
        for score, size in self.sizes.items():
            for copy in range(self.per_caption if score in SPLITS else 1):
                for numbers in batches(size, self.batch_size):
                    yield score, copy, numbers


def item_scores(
    model: Any, plan: ScoringPlan, part: tuple[int, int] = (0, 1), kept: ImageCache | None = None
) -> Iterator[ItemScore]:
    """Those of every N-th batch, beginning with the K-th; part is (K, N), counted from 0."""
    judge = {
        **{score: _generated for score in SPLITS},
        "reconstruction": _reconstructed,
        "question_answering": _answered,
        "edits": _edited,
    }
    for score, copy, numbers in list(plan.work())[part[0] :: part[1]]:
        right = judge[score](model, plan, score, copy, numbers, kept)
        yield from ((score, copy, n, bool(each)) for n, each in zip(numbers, right, strict=True))


def report(found: Sequence[ItemScore], plan: ScoringPlan, folder: Path | None = None) -> Report:
    """All scores, those of chance beside them, with 95% intervals.

    Wilson's, where each value is of a sample of its own; else samples (captions, or the images
    that questions are about) are drawn again, tasks are fixed.

    Args:
        found: all verdicts of the plan, in any order.
        folder: folder of the stored images.
    """
    ordered = sorted(found, key=lambda each: (each[0], each[2], each[1]))
    right = {score: [each[3] for each in ordered if each[0] == score] for score in plan.sizes}
    scores: dict[str, float] = {}
    clusters: dict[str, list[list[list[float]]]] = {}
    for score, split in SPLITS.items():
        asked = [each.request for each in examples(split, plan.num_images)]
        repeated = [request for request in asked for _ in range(plan.per_caption)]
        tasks = by_task(right[score], repeated)
        values = _runs(right[score], plan.per_caption)
        groups = {
            task: [some for some, r in zip(values, asked, strict=True) if r.task == task]
            for task in tasks
            if task != "mean"
        }
        clusters |= {f"{score}/{task}": [group] for task, group in groups.items()}
        clusters[f"{score}/mean"] = list(groups.values())
        scores |= {f"{score}/{task}": value for task, value in tasks.items()}
    scores["reconstruction"] = mean(right["reconstruction"])
    clusters["reconstruction"] = [_runs(right["reconstruction"], 1)]
    turns = ask_about(examples("eval", plan.num_images))
    for name, value in by_type(turns, right["question_answering"]).items():
        of_type = [n for n, turn in enumerate(turns) if name in (turn.type, "mean")]
        images: dict[int, list[float]] = {}
        for n in of_type:
            images.setdefault(turns[n].number, []).append(float(right["question_answering"][n]))
        scores[f"question_answering/{name}"] = value
        clusters[f"question_answering/{name}"] = [list(images.values())]
    asked_edits = edits(plan.sizes["edits"])
    scores |= {f"edits/{k}": v for k, v in by_kind(asked_edits, right["edits"]).items()}
    for kind in {edit.kind for edit in asked_edits}:
        of_kind = [r for r, e in zip(right["edits"], asked_edits, strict=True) if e.kind == kind]
        clusters[f"edits/{kind}"] = [_runs(of_kind, 1)]
    scores["edits/mean"] = mean(right["edits"])
    clusters["edits/mean"] = [_runs(right["edits"], 1)]
    scores["edits/low"], scores["edits/high"] = wilson(scores["edits/mean"], len(right["edits"]))
    by_chance = {**chance(plan.num_images), "edits": edit_chance(plan.sizes["edits"])}
    return Report(
        benchmark="shapes",
        scores=scores | _flat("chance", by_chance),
        judged_by="the shapes world's own checker, which reads every image's scene",
        intervals={name: interval(clusters[name]) for name in scores if name in clusters},
        numbers={
            name: sum(len(values) for group in clusters[name] for values in group)
            for name in scores
            if name in clusters
        },
        counts={"asked": len(found), "scored": len(found)},
        settings=plan.settings | ({"folder": str(folder)} if folder else {}),
        items=_items(ordered, plan.num_images, folder),
    )


def evaluate_all(model: Any, num_images: int = 240, batch_size: int = 64) -> dict[str, Any]:
    """Every score of the shapes world, and chance beside it; nested dicts."""
    plan = ScoringPlan(num_images, batch_size=batch_size)
    return nested(report(list(item_scores(model, plan)), plan).scores)


def interval(groups: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float] | None:
    """The 95% interval of the mean of group means; see `report`.

    Bootstrap of equal values gives an interval of zero width: Wilson's then, of the clusters.
    """
    clusters = [cluster for group in groups for cluster in group]
    values = [value for cluster in clusters for value in cluster]
    if len(values) == len(clusters) or len(set(values)) == 1:
        share = mean(mean(value for cluster in group for value in cluster) for group in groups)
        return wilson(share, len(clusters))
    return bootstrap(groups, [1 / len(groups)] * len(groups))


def image_file(score: str, copy: int, number: int) -> str:
    """Path of the image for a caption, relative to the folder."""
    return f"{score}/{number:05d}-{copy}.png"


def _runs(values: Sequence[bool], length: int) -> list[list[float]]:
    floats = [float(value) for value in values]
    return [floats[at : at + length] for at in range(0, len(floats), length)]


def _items(
    ordered: Sequence[ItemScore], num_images: int, folder: Path | None
) -> list[dict[str, Any]]:
    """One an image for a caption."""
    found = []
    for score, copy, number, right in ordered:
        if score in SPLITS:
            file = image_file(score, copy, number)
            prompt = examples(SPLITS[score], num_images)[number].caption
            item = {"key": file.removesuffix(".png"), "prompt": prompt, "state": "scored"}
            found.append(item | {"score": float(right)} | ({"image": file} if folder else {}))
    return found


def _flat(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, each in value.items() for k, v in _flat(f"{name}/{key}", each).items()}


# --- one batch ------------------------------------------------------------------------------------


def _generated(
    model: Any, plan: ScoringPlan, score: str, copy: int, numbers: range, kept: ImageCache | None
) -> list[bool]:
    samples = examples(SPLITS[score], plan.num_images)
    asked = {
        n: (image_file(score, copy, n), samples[n].caption, (plan.seed + copy) * SEEDS + n)
        for n in numbers
    }
    images = {n: kept.load(*asked[n]) for n in numbers} if kept else dict.fromkeys(numbers)
    left = [n for n, image in images.items() if image is None]
    if left:
        options = ImageOptions(len(left), plan.seed + copy, plan.generation_config, left)
        made = generate_for(model, [samples[n] for n in left], options)
        images |= zip(left, made, strict=True)
    if kept:
        for n in left:
            kept.save(*asked[n], images[n])
    return [check(images[n], samples[n].request) for n in numbers]


def _reconstructed(
    model: Any, plan: ScoringPlan, score: str, copy: int, numbers: range, kept: ImageCache | None
) -> list[bool]:
    samples = examples("eval", plan.num_images)[numbers.start : numbers.stop]
    # their noise does not depend on the plan's seed: it is of what the encoder keeps
    images = reconstruct_for(model, samples, ImageOptions(len(numbers), numbers=numbers))
    wanted = (request_of(sample.scene) for sample in samples)
    return [check(image, request) for image, request in zip(images, wanted, strict=True)]


def _answered(
    model: Any, plan: ScoringPlan, score: str, copy: int, numbers: range, kept: ImageCache | None
) -> list[bool]:
    samples = examples("eval", plan.num_images)
    turns = ask_about(samples)[numbers.start : numbers.stop]
    given = answers_for(model, samples, turns, len(numbers))
    return [answer_is_right(g, turn.answer) for g, turn in zip(given, turns, strict=True)]


def _edited(
    model: Any, plan: ScoringPlan, score: str, copy: int, numbers: range, kept: ImageCache | None
) -> list[bool]:
    asked = edits(plan.sizes["edits"])[numbers.start : numbers.stop]
    options = ImageOptions(len(numbers), plan.seed, plan.generation_config, numbers)
    results = edit_for(model, asked, options)
    return [check(each, edit.request) for each, edit in zip(results, asked, strict=True)]
