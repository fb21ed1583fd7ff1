"""Every score of the shapes world, item by item, so that processes can share the work.

Work is cut into batches that depend only on the settings, and a process takes whole batches: the
scores are bit-identical for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from triptych.evaluation.image_cache import ImageCache
from triptych.evaluation.report import Report, nested
from triptych.evaluation.shapes.common import SEEDS, ImageOptions, batches
from triptych.evaluation.shapes.edit_eval import (
    by_kind,
    edit_chance,
    edit_for,
    edits,
    kept,
)
from triptych.evaluation.shapes.shape_eval import (
    MAX_EDITS,
    QUESTIONS_PER_IMAGE,
    answers_for,
    by_type,
    chance,
    examples,
    generate_for,
    questions_about,
    reconstruct_for,
)
from triptych.evaluation.shapes.story_eval import TURNS, tell_stories, turn_scores
from triptych.evaluation.statistics import bootstrap, mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.shapes_world.captions import request_of
from triptych.shapes_world.checker import answer_is_right, by_task, check
from triptych.utils.errors import UserError

SPLITS = {"shape_eval": "eval", "shape_eval_unseen": "unseen"}
"""Score -> split of its captions."""

ItemScore = tuple[str, int, int, bool]
"""(score, copy, number of the item, whether the item is correct). Of KEPT: the number of the edit,
and in place of a copy that of a shape which it does not touch."""
KEPT = "edits/kept"


@dataclass(frozen=True)
class ScoringPlan:
    """Settings of a scoring run; the batch size affects only rounding, speed and memory."""

    num_images: int = 600
    """Number of captions, reconstructions and half of the questions; at most MAX_EDITS edits, and
    as many stories."""
    per_caption: int = 1
    """Images for each caption, with the seeds `seed`, `seed` + 1, and so on."""
    seed: int = 0
    batch_size: int = 64
    generation_config: GenerationConfig = GenerationConfig()

    def __post_init__(self) -> None:
        if self.num_images < 2:  # chance is computed with the image of another caption
            raise UserError(
                f"the shapes world cannot be scored on {self.num_images} image; give 2."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All values, generation settings included."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | own.pop("generation_config").settings

    @property
    def sizes(self) -> dict[str, int]:
        """Number of items of each score, in one copy."""
        return {
            "shape_eval": self.num_images,
            "shape_eval_unseen": self.num_images,
            "reconstruction": self.num_images,
            "question_answering": self.num_images * QUESTIONS_PER_IMAGE,
            "edits": min(self.num_images, MAX_EDITS),
            "stories": min(self.num_images, MAX_EDITS) * TURNS,
        }

    def work(self) -> Iterator[tuple[str, int, range]]:
        """Yield (score, copy, numbers of the items) of every batch."""
        for score, size in self.sizes.items():
            batch_size = self.batch_size * (TURNS if score == "stories" else 1)
            for copy in range(self.per_caption if score in SPLITS else 1):
                for numbers in batches(size, batch_size):
                    yield score, copy, numbers


def item_scores(
    model: Any,
    plan: ScoringPlan,
    batches_of: tuple[int, int] = (0, 1),
    cache: ImageCache | None = None,
) -> Iterator[ItemScore]:
    """Score the items of some batches.

    Args:
        model: the model to score.
        plan: settings of the run.
        batches_of: (K, N): every N-th batch from batch K on, counted from 0.
        cache: cache of the generated images.
    """
    score_batch = {
        **{score: _generated for score in SPLITS},
        "reconstruction": _reconstructed,
        "question_answering": _answered,
        "stories": _told,
    }
    first, step = batches_of
    for score, copy, numbers in list(plan.work())[first::step]:
        if score == "edits":
            yield from _edited(model, plan, numbers)
            continue
        right = score_batch[score](
            model, plan, score=score, copy=copy, numbers=numbers, cache=cache
        )
        yield from ((score, copy, n, bool(each)) for n, each in zip(numbers, right, strict=True))


def report(items: Sequence[ItemScore], plan: ScoringPlan, folder: Path | None = None) -> Report:
    """Report of all scores, with the scores of chance and 95% intervals.

    Intervals are Wilson's where values are independent; else samples (captions, or the images that
    questions are about) are resampled, tasks are fixed.

    Args:
        items: all item scores of the plan, in any order.
        plan: settings of the run.
        folder: folder of the stored images.
    """
    ordered = sorted(items, key=lambda each: (each[0], each[2], each[1]))
    right = {score: [each[3] for each in ordered if each[0] == score] for score in plan.sizes}
    scores: dict[str, float] = {}
    clusters: dict[str, list[list[list[float]]]] = {}
    for score, split in SPLITS.items():
        requests = [each.request for each in examples(split, plan.num_images)]
        repeated = [request for request in requests for _ in range(plan.per_caption)]
        tasks = by_task(right[score], repeated)
        values = _runs(right[score], plan.per_caption)
        groups = {
            task: [some for some, r in zip(values, requests, strict=True) if r.task == task]
            for task in tasks
            if task != "mean"
        }
        clusters |= {f"{score}/{task}": [group] for task, group in groups.items()}
        clusters[f"{score}/mean"] = list(groups.values())
        scores |= {f"{score}/{task}": value for task, value in tasks.items()}
    scores["reconstruction"] = mean(right["reconstruction"])
    clusters["reconstruction"] = [_runs(right["reconstruction"], 1)]
    questions = questions_about(examples("eval", plan.num_images))
    for name, value in by_type(questions, right["question_answering"]).items():
        of_type = [n for n, each in enumerate(questions) if name in (each.type, "mean")]
        images: dict[int, list[float]] = {}
        for n in of_type:
            images.setdefault(questions[n].number, []).append(float(right["question_answering"][n]))
        scores[f"question_answering/{name}"] = value
        clusters[f"question_answering/{name}"] = [list(images.values())]
    samples = edits(plan.sizes["edits"])
    scores |= {f"edits/{k}": v for k, v in by_kind(samples, right["edits"]).items()}
    for kind in {edit.kind for edit in samples}:
        of_kind = [r for r, e in zip(right["edits"], samples, strict=True) if e.kind == kind]
        clusters[f"edits/{kind}"] = [_runs(of_kind, 1)]
    scores["edits/mean"] = mean(right["edits"])
    clusters["edits/mean"] = [_runs(right["edits"], 1)]
    scores["edits/low"], scores["edits/high"] = wilson(scores["edits/mean"], len(right["edits"]))
    shapes: dict[int, list[float]] = {}
    for score, _, number, value in ordered:
        if score == KEPT:
            shapes.setdefault(number, []).append(float(value))
    if shapes:
        scores[KEPT] = mean(value for of_edit in shapes.values() for value in of_edit)
        clusters[KEPT] = [list(shapes.values())]
    told = _runs(right["stories"], TURNS)
    for name, values in turn_scores(told).items():
        scores[f"stories/{name}"] = mean(each for story in values for each in story)
        clusters[f"stories/{name}"] = [[story for story in values if story]]
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
        counts=dict.fromkeys(("expected", "scored"), sum(map(len, right.values()))),
        settings=plan.settings | ({"folder": str(folder)} if folder else {}),
        items=_items(ordered, plan.num_images, folder),
    )


def evaluate_all(model: Any, num_images: int = 240, batch_size: int = 64) -> dict[str, Any]:
    """Every score of the shapes world and of chance, as nested dicts."""
    plan = ScoringPlan(num_images, batch_size=batch_size)
    return nested(report(list(item_scores(model, plan)), plan).scores)


def interval(groups: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float] | None:
    """The 95% interval of the mean of group means; see `report`.

    Wilson's interval of the clusters where all values are equal: a bootstrap would have zero width.
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
    """Report items, one for each generated image."""
    items = []
    for score, copy, number, right in ordered:
        if score in SPLITS:
            file = image_file(score, copy, number)
            prompt = examples(SPLITS[score], num_images)[number].caption
            item = {"key": file.removesuffix(".png"), "prompt": prompt, "state": "scored"}
            items.append(item | {"score": float(right)} | ({"image": file} if folder else {}))
    return items


def _flat(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, each in value.items() for k, v in _flat(f"{name}/{key}", each).items()}


# --- one batch ------------------------------------------------------------------------------------


def _generated(
    model: Any,
    plan: ScoringPlan,
    *,
    score: str,
    copy: int,
    numbers: range,
    cache: ImageCache | None,
) -> list[bool]:
    samples = examples(SPLITS[score], plan.num_images)
    files = {
        n: (image_file(score, copy, n), samples[n].caption, (plan.seed + copy) * SEEDS + n)
        for n in numbers
    }
    images = {n: cache.load(*files[n]) for n in numbers} if cache else dict.fromkeys(numbers)
    missing = [n for n, image in images.items() if image is None]
    if missing:
        options = ImageOptions(len(missing), plan.seed + copy, plan.generation_config, missing)
        generated = generate_for(model, [samples[n] for n in missing], options)
        images |= zip(missing, generated, strict=True)
    if cache:
        for n in missing:
            cache.save(*files[n], images[n])
    return [check(images[n], samples[n].request) for n in numbers]


def _reconstructed(model: Any, plan: ScoringPlan, *, numbers: range, **_: Any) -> list[bool]:
    samples = examples("eval", plan.num_images)[numbers.start : numbers.stop]
    # the plan's seed is not used: the score is about what the encoder keeps
    images = reconstruct_for(model, samples, ImageOptions(len(numbers), numbers=numbers))
    requests = (request_of(sample.scene) for sample in samples)
    return [check(image, request) for image, request in zip(images, requests, strict=True)]


def _answered(model: Any, plan: ScoringPlan, *, numbers: range, **_: Any) -> list[bool]:
    samples = examples("eval", plan.num_images)
    questions = questions_about(samples)[numbers.start : numbers.stop]
    answers = answers_for(model, samples, questions, len(numbers))
    pairs = zip(answers, questions, strict=True)
    return [answer_is_right(answer, question.answer) for answer, question in pairs]


def _edited(model: Any, plan: ScoringPlan, numbers: range) -> Iterator[ItemScore]:
    samples = edits(plan.sizes["edits"])[numbers.start : numbers.stop]
    config = replace(plan.generation_config, num_candidates=None)  # captions are ranked, not edits
    options = ImageOptions(len(numbers), plan.seed, config, numbers)
    images = edit_for(model, samples, options)
    for number, image, edit in zip(numbers, images, samples, strict=True):
        yield "edits", 0, number, check(image, edit.request)
        yield from ((KEPT, n, number, same) for n, same in enumerate(kept(image, edit)))


def _told(model: Any, plan: ScoringPlan, *, numbers: range, **_: Any) -> list[bool]:
    stories = range(numbers.start // TURNS, numbers.stop // TURNS)
    options = ImageOptions(len(stories), plan.seed, plan.generation_config, stories)
    return [turn for story in tell_stories(model, len(stories), options) for turn in story.right]
