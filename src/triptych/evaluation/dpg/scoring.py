"""DPG-Bench score of a folder of grids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.dpg.layout import (
    GRID,
    PACKAGED,
    read_folder,
    read_prompts,
    split_grid,
    tile_size,
)
from triptych.evaluation.dpg.questions import (
    Proposition,
    read_answer,
    read_questions,
    resolve_dependencies,
)
from triptych.evaluation.expected_images import JUDGE_FAILED, SCORED, ExpectedImage, counts, opened
from triptych.evaluation.judges.base import AnswerCache, Judge
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.utils.errors import UserError

INSTRUCTION = "{} Answer with yes or no."


def score(
    folder: str | Path,
    judge: Judge,
    *,
    questions: str | Path,
    prompts: str | Path = PACKAGED,
    tile: int | None = None,
    grid: int = GRID,
    answers: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """DPG score of a complete folder: share of true propositions, and of yes by category.

    The score of an image is the mean over its tiles, that of a tile the mean over its propositions,
    0 where a proposition depends on a false one. Categories are shares of yes over all tiles. (The
    official script skips the first question of its file, and takes categories only from the last
    tile.) From 0 to 1; published numbers are in hundredths.

    Args:
        folder: folder of images in the layout of `layout`.
        judge: model that answers the questions.
        questions: path of dpg_bench.csv, which is not packaged.
        prompts: prompt file that the images were generated from.
        tile: side of a tile in pixels; None takes that of most images.
        grid: number of tiles per side; 1 if each prompt has a single image.
        answers: cache file of the judge's answers, from which an interrupted run resumes.
        limit: maximum number of prompts; the first ones are taken.

    Raises:
        UserError: a file is missing, or lacks questions about some prompts.
    """
    folder, prompts, questions = Path(folder), Path(prompts), Path(questions)
    entries, propositions_of = read_prompts(prompts)[:limit], read_questions(questions)
    if lacking := [e["item_id"] for e in entries if str(e["item_id"]) not in propositions_of]:
        raise UserError(
            f"{questions} asks nothing about {len(lacking)} of {len(entries)} prompts, such as "
            f"{lacking[0]}; give the whole file, or the prompts that it is about."
        )
    samples = read_folder(folder, entries)
    tile = tile or tile_size(folder, samples, grid)
    cache = AnswerCache(answers)
    question_counts: Counter[str] = Counter()
    by_category: dict[str, list[list[float]]] = defaultdict(list)

    def fits(size: tuple[int, int]) -> str:
        expected = (grid * tile, grid * tile)
        return "" if size == expected else "has {}x{} pixels, not {}x{}".format(*size, *expected)

    for sample in samples:
        if sample.state != SCORED or (joined := opened(folder, sample, fits)) is None:
            continue
        propositions = propositions_of[sample.key]
        tile_answers = judge_tiles(split_grid(joined, grid), propositions, judge, cache)
        flat = [answer for of_tile in tile_answers for answer in of_tile.values()]
        question_counts.update(questions=len(flat), questions_failed=flat.count(None))
        _score(sample, propositions, tile_answers)
        for category, yes in _of_categories(propositions, tile_answers).items():
            by_category[category].append(yes)
    scores, intervals, numbers = _summary(samples, by_category)
    return Report(
        "dpg",
        scores,
        f"{judge.name}; not the official DPG judge",
        intervals,
        numbers,
        counts(samples)
        | {name: question_counts[name] for name in ("questions", "questions_failed")},
        {
            "folder": str(folder),
            "prompts": prompts,
            "limit": limit,
            "questions": questions,
            "tile": tile,
            "grid": grid,
            "instruction": INSTRUCTION,
            "judge": judge.settings(),
        },
        [sample.item() for sample in samples],
    )


def judge_tiles(
    tiles: Sequence[Image.Image],
    propositions: Sequence[Proposition],
    judge: Judge,
    cache: AnswerCache,
) -> list[dict[int, bool | None]]:
    """Answers for each tile, by number of the proposition; None for neither yes nor no."""
    questions = [
        (tile, INSTRUCTION.format(each.question)) for tile in tiles for each in propositions
    ]
    answers = iter(cache.ask(judge, questions))
    return [
        {
            each.number: read_answer(answer) if isinstance(answer := next(answers), str) else None
            for each in propositions
        }
        for _ in tiles
    ]


def _score(
    sample: ExpectedImage,
    propositions: Sequence[Proposition],
    tile_answers: Sequence[Mapping[int, bool | None]],
) -> None:
    values = []
    for answers in tile_answers:
        truth = resolve_dependencies(propositions, answers).values()
        decided = [holds for holds in truth if holds is not None]
        if decided:
            values.append(sum(decided) / len(decided))
    failed = sum(answer is None for answers in tile_answers for answer in answers.values())
    if not values:
        sample.exclude(JUDGE_FAILED, "the judge said neither yes nor no to any question")
        return
    sample.score = sum(values) / len(values)
    if failed:
        number = len(tile_answers) * len(propositions)
        sample.note = f"{failed} of {number} questions answered neither yes nor no"


def _of_categories(
    propositions: Sequence[Proposition], tile_answers: Sequence[Mapping[int, bool | None]]
) -> dict[str, list[float]]:
    """Answers of all tiles by category, 1 for yes and 0 for no."""
    values = defaultdict(list)
    for each in propositions:
        answers = (of_tile[each.number] for of_tile in tile_answers)
        values[each.category] += [float(yes) for yes in answers if yes is not None]
    return {category: some for category, some in values.items() if some}


def _summary(
    samples: Sequence[ExpectedImage], by_category: Mapping[str, list[list[float]]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Scores, intervals and counts: "overall" over images, categories over answers."""
    groups = {name: by_category[name] for name in sorted(by_category)}
    if images := [[sample.score] for sample in samples if sample.score is not None]:
        groups = {"overall": images} | groups
    numbers = {name: sum(map(len, clusters)) for name, clusters in groups.items()}
    scores = {name: sum(map(sum, some)) / numbers[name] for name, some in groups.items()}
    intervals = {name: bootstrap([clusters], [1.0]) for name, clusters in groups.items()}
    return scores, intervals, numbers
