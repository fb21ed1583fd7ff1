"""Demo: scores a trained shapes model and shows its results, on one page, in a minute."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from triptych.evaluation.shapes.common import ImageOptions
from triptych.evaluation.shapes.demo_page import (
    Answered,
    DemoRow,
    Drawn,
    Edited,
    Rebuilt,
    StoryTurn,
    render,
)
from triptych.evaluation.shapes.edit_eval import edit_chance, edit_for, edits
from triptych.evaluation.shapes.shape_eval import (
    QUESTIONS_PER_IMAGE,
    EvalSample,
    ImageQuestion,
    answers_for,
    chance,
    examples,
    generate_for,
    questions_about,
    reconstruct_for,
    score_answers,
)
from triptych.evaluation.shapes.story_eval import Telling, tell_stories
from triptych.evaluation.statistics import mean, wilson
from triptych.shapes_world.captions import TASKS, request_of
from triptych.shapes_world.checker import answer_is_right, check, shape_eval
from triptych.shapes_world.edits import Edit
from triptych.shapes_world.world import draw
from triptych.utils.atomic_write import write_text

SHOWN = 12  # number of captions, questions and reconstructions on the page
SEEDS_SHOWN = 4
STORIES_SHOWN = 4
FIRST_QUESTIONS = slice(0, SHOWN * QUESTIONS_PER_IMAGE, QUESTIONS_PER_IMAGE)  # one per image


def make_demo(
    model: Any,
    folder: str | Path,
    *,
    seed: int = 0,
    num_images: int = 240,
    batch_size: int = 64,
    started: float | None = None,
) -> dict[str, Any]:
    """Write FOLDER/index.html and FOLDER/scores.json, and return the scores.

    Args:
        model: a built UnifiedModule in evaluation mode.
        folder: output folder, created if it is missing.
        seed: random seed of the noise that images start from.
        num_images: number of evaluation samples of each score, 12 or more; of edits a fifth, of
            stories a tenth.
        batch_size: number of images at a time.
        started: start of "seconds" in the scores, from `time.time()`; None is now.
    """
    started = time.time() if started is None else started
    samples = examples("eval", max(num_images, SHOWN))
    shown = samples[:SHOWN]
    images = generate_for(model, samples, ImageOptions(batch_size, seed))
    others = [
        generate_for(model, shown, ImageOptions(batch_size, seed + n))
        for n in range(1, SEEDS_SHOWN)
    ]
    rebuilt = reconstruct_for(model, samples, ImageOptions(batch_size, seed))
    questions = questions_about(samples)
    answers = answers_for(model, samples, questions, batch_size)
    changes = edits(max(num_images // 5, SHOWN))
    edited = edit_for(model, changes, ImageOptions(batch_size, seed))
    told = tell_stories(model, max(num_images // 10, STORIES_SHOWN), ImageOptions(batch_size, seed))
    scores = _scores(samples, images, rebuilt, questions, answers)
    _add_scores(scores, changes, edited, told)
    scores["seconds"] = round(time.time() - started, 1)
    page = render(
        "triptych: one small model that reads and makes images",
        _rows(scores),
        drawn=_drawn(shown, numpy.stack([images[:SHOWN], *others], axis=1)),
        answered=_answered(samples, questions[FIRST_QUESTIONS], answers[FIRST_QUESTIONS]),
        rebuilt=_rebuilt(shown, rebuilt[:SHOWN]),
        edited=_edited(changes[:SHOWN], edited[:SHOWN]),
        told=[_turns(story) for story in told[:STORIES_SHOWN]],
        note=f"{len(samples)} samples for each score, {scores['seconds']:.0f} seconds in all.",
    )
    folder = Path(folder)
    write_text(folder / "index.html", page)
    write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def _scores(
    samples: Sequence[EvalSample],
    images: numpy.ndarray,
    rebuilt: numpy.ndarray,
    questions: Sequence[ImageQuestion],
    answers: Sequence[str],
) -> dict[str, Any]:
    """Content of scores.json, except for the seconds."""
    right = [check(p, request_of(s.scene)) for p, s in zip(rebuilt, samples, strict=True)]
    types = score_answers(questions, answers)
    expected = chance(len(samples))
    scores = {
        "shape_eval": shape_eval(images, [sample.request for sample in samples]),
        "reconstruction": sum(right) / len(right),
        "question_answering": types.pop("mean"),
    }
    numbers = {
        "shape_eval": len(samples),
        "reconstruction": len(samples),
        "question_answering": len(questions),
    }
    means = scores | {"shape_eval": scores["shape_eval"]["mean"]}
    return scores | {
        "intervals": {name: wilson(means[name], number) for name, number in numbers.items()},
        "numbers": numbers,
        "question_types": types,
        "chance": expected | {"question_answering": expected["question_answering"]["mean"]},
    }


def _add_scores(
    scores: dict[str, Any], changes: Sequence[Edit], edited: numpy.ndarray, told: Sequence[Telling]
) -> None:
    """Add shares of correct edits and turns of stories to the content of scores.json."""
    right = [check(image, edit.request) for image, edit in zip(edited, changes, strict=True)]
    turns = [turn for story in told for turn in story.right]
    scores |= {"edits": mean(right), "stories": mean(turns)}
    scores["chance"] |= {"edits": edit_chance(len(changes))["another"]}
    for name, values in (("edits", right), ("stories", turns)):
        scores["intervals"][name] = wilson(scores[name], len(values))
        scores["numbers"][name] = len(values)


def _rows(scores: dict[str, Any]) -> list[DemoRow]:
    """Rows of the table: six tasks, their mean, reconstructions, answers."""
    numbers, chances = scores["numbers"], scores["chance"]
    tasks = [
        _row(
            task.replace("_", " "),
            scores["shape_eval"][task],
            numbers["shape_eval"] // len(TASKS),
            chances["shape_eval"][task],
        )
        for task in TASKS
    ]
    totals = [
        ("text to image, mean", scores["shape_eval"]["mean"], "shape_eval"),
        ("reconstruction", scores["reconstruction"], "reconstruction"),
        ("question answering", scores["question_answering"], "question_answering"),
        ("edits", scores["edits"], "edits"),
        ("turns of stories", scores["stories"], "stories"),
    ]
    chances = chances | {"shape_eval": chances["shape_eval"]["mean"]}
    return tasks + [
        _row(name, score, numbers[key], chances.get(key), total=True) for name, score, key in totals
    ]


def _row(
    name: str, score: float, number: int, by_chance: float | None, total: bool = False
) -> DemoRow:
    return DemoRow(name, score, wilson(score, number), number, by_chance, total)


def _drawn(samples: Sequence[EvalSample], images: numpy.ndarray) -> list[Drawn]:
    """Images uint8 [N,seeds,48,48,3] of the samples' captions, two captions of each task."""
    return [
        Drawn(s.caption, s.request.task, drawn, [check(image, s.request) for image in drawn])
        for s, drawn in zip(samples, images, strict=True)
    ]


def _answered(
    samples: Sequence[EvalSample], questions: Sequence[ImageQuestion], answers: Sequence[str]
) -> list[Answered]:
    return [
        Answered(
            samples[each.number].image,
            each.question,
            answer,
            each.answer,
            answer_is_right(answer, each.answer),
        )
        for each, answer in zip(questions, answers, strict=True)
    ]


def _rebuilt(samples: Sequence[EvalSample], rebuilt: numpy.ndarray) -> list[Rebuilt]:
    return [
        Rebuilt(s.image, image, check(image, request_of(s.scene)))
        for s, image in zip(samples, rebuilt, strict=True)
    ]


def _edited(changes: Sequence[Edit], images: numpy.ndarray) -> list[Edited]:
    return [
        Edited(draw(edit.source), edit.instruction, image, check(image, edit.request))
        for edit, image in zip(changes, images, strict=True)
    ]


def _turns(story: Telling) -> list[StoryTurn]:
    """Turns of a story up to where it ended."""
    asked, answers = story.messages[::2], story.messages[1::2]
    return [
        StoryTurn(
            question["content"],
            " ".join(part for part in answer["content"] if isinstance(part, str)),
            [numpy.asarray(p.convert("RGB")) for p in answer["content"] if not isinstance(p, str)],
            right,
        )
        for question, answer, right in zip(asked, answers, story.right, strict=False)
    ]
