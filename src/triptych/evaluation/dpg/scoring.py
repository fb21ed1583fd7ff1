"""A folder of grids scored."""

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
from triptych.evaluation.dpg.questions import Proposition, held, read_answer, read_questions
from triptych.evaluation.expected_images import JUDGE_FAILED, SCORED, ExpectedImage, counts, opened
from triptych.evaluation.judges.base import Answers, Judge
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.utils.errors import UserError

INSTRUCTION = "{} Answer with yes or no."


def score(
    folder: str | Path,
    judge: Judge,
    questions: str | Path,
    prompts: str | Path = PACKAGED,
    tile: int | None = None,
    grid: int = GRID,
    answers: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """DPG score of a finished folder: the share of propositions that hold, and of yes by category.

    An image's score is the mean of its tiles', a tile's the mean of its propositions', 0 where one
    hangs on another that does not hold; categories are shares of the answers themselves, over all
    tiles. (The official script skips the first question of its file, and takes categories from the
    only the last tile.) From 0 to 1; published numbers are in hundredths.

    Args:
        folder: folder of images in the layout of `layout`.
        questions: path of dpg_bench.csv, which is not packaged.
        prompts: prompt file that the folder was made from.
        tile: side of a tile in pixels; None takes that of most images.
        grid: tiles per side; 1 if each prompt has a single image.
        answers: file that caches the judge's answers: a stopped scoring resumes.
        limit: maximum number of prompts, the first ones.

    Raises:
        UserError: a file is missing, or lacks questions about some prompts.
    """
    folder, prompts, questions = Path(folder), Path(prompts), Path(questions)
    entries, asked = read_prompts(prompts)[:limit], read_questions(questions)
    if lacking := [e["item_id"] for e in entries if str(e["item_id"]) not in asked]:
        raise UserError(
            f"{questions} asks nothing about {len(lacking)} of {len(entries)} prompts, such as "
            f"{lacking[0]}; give the whole file, or the prompts that it is about."
        )
    samples = read_folder(folder, entries)
    tile = tile or tile_size(folder, samples, grid)
    memory = Answers(answers)
    said: Counter[str] = Counter()
    by_category: dict[str, list[list[float]]] = defaultdict(list)

    def fits(size: tuple[int, int]) -> str:
        wanted = (grid * tile, grid * tile)
        return "" if size == wanted else "has {}x{} pixels, not {}x{}".format(*size, *wanted)

    for sample in samples:
        if sample.state != SCORED or (joined := opened(folder, sample, fits)) is None:
            continue
        propositions = asked[sample.key]
        given = judge_tiles(split_grid(joined, grid), propositions, judge, memory)
        flat = [answer for of_tile in given for answer in of_tile.values()]
        said.update(questions=len(flat), questions_failed=flat.count(None))
        _score(sample, propositions, given)
        for category, yes in _of_categories(propositions, given).items():
            by_category[category].append(yes)
    scores, intervals, numbers = _summary(samples, by_category)
    return Report(
        "dpg",
        scores,
        f"{judge.name}; not the official DPG judge",
        intervals,
        numbers,
        counts(samples) | {name: said[name] for name in ("questions", "questions_failed")},
        {
            "folder": str(folder),
            "prompts": prompts,
            "limit": limit,
            "questions": questions,
            "tile": tile,
            "grid": grid,
            "asked": INSTRUCTION,
            "judge": judge.settings(),
        },
        [sample.item() for sample in samples],
    )


def judge_tiles(
    tiles: Sequence[Image.Image],
    propositions: Sequence[Proposition],
    judge: Judge,
    memory: Answers,
) -> list[dict[int, bool | None]]:
    """Answers of the judge for each tile, by proposition; None if one was neither yes nor no."""
    asked = [(tile, INSTRUCTION.format(each.question)) for tile in tiles for each in propositions]
    answers = iter(memory.ask(judge, asked))
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
    given: Sequence[Mapping[int, bool | None]],
) -> None:
    values = []
    for answers in given:
        known = [holds for holds in held(propositions, answers).values() if holds is not None]
        if known:
            values.append(sum(known) / len(known))
    failed = sum(answer is None for answers in given for answer in answers.values())
    if not values:
        sample.leave_out(JUDGE_FAILED, "the judge said neither yes nor no to any question")
        return
    sample.score = sum(values) / len(values)
    if failed:
        number = len(given) * len(propositions)
        sample.note = f"{failed} of {number} questions answered neither yes nor no"


def _of_categories(
    propositions: Sequence[Proposition], given: Sequence[Mapping[int, bool | None]]
) -> dict[str, list[float]]:
    """1 for yes and 0 for no, of all tiles, by category."""
    found = defaultdict(list)
    for each in propositions:
        answers = (of_tile[each.number] for of_tile in given)
        found[each.category] += [float(yes) for yes in answers if yes is not None]
    return {category: yes for category, yes in found.items() if yes}


def _summary(
    samples: Sequence[ExpectedImage], by_category: Mapping[str, list[list[float]]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Scores, intervals and numbers: "overall" of images, categories of answers."""
    groups = {name: by_category[name] for name in sorted(by_category)}
    if images := [[sample.score] for sample in samples if sample.score is not None]:
        groups = {"overall": images} | groups
    numbers = {name: sum(map(len, clusters)) for name, clusters in groups.items()}
    scores = {name: sum(map(sum, some)) / numbers[name] for name, some in groups.items()}
    intervals = {name: bootstrap([clusters], [1.0]) for name, clusters in groups.items()}
    return scores, intervals, numbers
