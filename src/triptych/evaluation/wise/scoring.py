"""WISE score of a folder of images, by a judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.expected_images import (
    JUDGE_FAILED,
    SCORED,
    ExpectedImage,
    counts,
    opened,
    sizes,
)
from triptych.evaluation.judges.base import AnswerCache, Judge, JudgeFailed
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.evaluation.wise.layout import WisePrompt, read_folder, read_prompts
from triptych.evaluation.wise.protocols import ScoringProtocol, read_instructions

IN_MEMORY = 4  # maximum number of images in memory, in batches of the judge


def score(
    folder: str | Path,
    judge: Judge,
    prompts: Sequence[str | Path],
    protocol: ScoringProtocol,
    *,
    instructions: str | Path | None = None,
    answers: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """WISE score of a complete folder: mean by category, and their weighted sum.

    Args:
        folder: folder of images in the layout of `layout`.
        judge: model that rates the images.
        prompts: files of the WISE repository that the images were generated from.
        protocol: scoring protocol, LEGACY or VERIFIED.
        instructions: file with instructions to the judge; None takes our own wording, which gives
            another scale than the published one.
        answers: cache file of the judge's answers, from which an interrupted run resumes.
        limit: maximum number of prompts; those with the smallest numbers are taken.

    Raises:
        UserError: a file or the folder is missing or malformed.
    """
    folder = Path(folder)
    by_number = dict(list(read_prompts(prompts, protocol).items())[:limit])
    template = protocol.instructions if instructions is None else read_instructions(instructions)
    samples = read_folder(folder, by_number)
    cache = AnswerCache(answers)

    def rate(batch: Sequence[tuple[ExpectedImage, Image.Image]]) -> None:
        prompts_of = [by_number[int(sample.key)] for sample, _ in batch]
        questions = [
            (image, _question(template, prompt))
            for (_, image), prompt in zip(batch, prompts_of, strict=True)
        ]
        for (sample, _), answer in zip(batch, cache.ask(judge, questions), strict=True):
            _set_score(sample, answer, protocol)

    batch: list[tuple[ExpectedImage, Image.Image]] = []
    for sample in samples:
        if sample.state == SCORED and (image := opened(folder, sample)) is not None:
            batch.append((sample, image))
        if len(batch) == IN_MEMORY * judge.batch:
            rate(batch)
            batch = []
    rate(batch)
    scores, intervals, numbers = summary(samples, protocol)
    whose = "triptych's own" if instructions is None else str(instructions)
    inputs = {f"prompts {number}": Path(path) for number, path in enumerate(prompts, 1)}
    return Report(
        f"wise ({protocol.name} protocol)",
        scores,
        f"{judge.name}; instructions: {whose}",
        intervals,
        numbers,
        counts(samples),
        {
            "folder": str(folder),
            **inputs,
            "limit": limit,
            "instructions": template if instructions is None else Path(instructions),
            "judge": judge.settings(),
            "sizes": sizes(samples),
        },
        [sample.item() for sample in samples],
    )


def _question(template: str, prompt: WisePrompt) -> str:
    question = template.replace("{prompt}", prompt.text)
    return question.replace("{explanation}", prompt.explanation)


def _set_score(sample: ExpectedImage, answer: str | JudgeFailed, protocol: ScoringProtocol) -> None:
    if not isinstance(answer, str):
        sample.exclude(JUDGE_FAILED, str(answer))
    elif (value := protocol.read(answer)) is None:
        sample.exclude(JUDGE_FAILED, f"not understood: {' '.join(answer.split())[:200]!r}")
    else:
        sample.score, sample.note = value, " ".join(answer.split())


def summary(
    samples: Sequence[ExpectedImage], protocol: ScoringProtocol
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Scores, intervals and counts by category, and "overall", their weighted sum.

    "overall" is omitted while a category has no score.
    """
    groups: dict[str, list[list[float]]] = defaultdict(list)
    for sample in samples:
        if sample.score is not None:
            groups[protocol.category(int(sample.key))].append([sample.score])
    groups = {name: groups[name] for name in protocol.ends if name in groups}
    numbers = {name: len(values) for name, values in groups.items()}
    scores = {name: sum(map(sum, values)) / len(values) for name, values in groups.items()}
    intervals = {name: bootstrap([values], [1.0]) for name, values in groups.items()}
    if set(groups) == set(protocol.weights):
        weights = [protocol.weights[name] for name in groups]
        scores["overall"] = sum(protocol.weights[name] * scores[name] for name in groups)
        intervals["overall"] = bootstrap(list(groups.values()), weights)
        numbers["overall"] = sum(numbers.values())
    return scores, intervals, numbers
