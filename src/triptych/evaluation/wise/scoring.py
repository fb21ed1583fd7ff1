"""A folder of images scored by a judge."""

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
from triptych.evaluation.judges.base import Answers, Judge
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.evaluation.wise.layout import WisePrompt, read_folder, read_prompts
from triptych.evaluation.wise.protocols import ScoringProtocol, read_instructions

AT_ONCE = 4  # times the judge's batch: images in memory


def score(
    folder: str | Path,
    judge: Judge,
    prompts: Sequence[str | Path],
    protocol: ScoringProtocol,
    instructions: str | Path | None = None,
    answers: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """WISE score of a finished folder: the mean by category, and the weighted sum.

    Args:
        folder: folder of images in the layout of `layout`.
        prompts: files of the WISE repository that the folder was made from.
        protocol: scoring protocol, LEGACY or VERIFIED.
        instructions: file with instructions to the judge; None takes our own words, which give
            another scale than the published ones.
        answers: file that caches the judge's answers: nothing is paid twice.
        limit: maximum number of prompts, those of the smallest numbers.

    Raises:
        UserError: a file or the folder is missing or of another shape.
    """
    folder = Path(folder)
    known = dict(list(read_prompts(prompts, protocol).items())[:limit])
    told = protocol.instructions if instructions is None else read_instructions(instructions)
    samples = read_folder(folder, known)
    memory = Answers(answers)
    some: list[tuple[ExpectedImage, Image.Image]] = []
    for sample in samples:
        if sample.state == SCORED and (image := opened(folder, sample)) is not None:
            some.append((sample, image))
        if len(some) == AT_ONCE * judge.batch:
            _judge(some, known, told, protocol, judge, memory)
            some = []
    _judge(some, known, told, protocol, judge, memory)
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
            "instructions": told if instructions is None else Path(instructions),
            "judge": judge.settings(),
            "sizes": sizes(samples),
        },
        [sample.item() for sample in samples],
    )


def _judge(
    some: Sequence[tuple[ExpectedImage, Image.Image]],
    known: dict[int, WisePrompt],
    told: str,
    protocol: ScoringProtocol,
    judge: Judge,
    memory: Answers,
) -> None:
    questions = []
    for sample, image in some:
        prompt = known[int(sample.key)]
        question = told.replace("{prompt}", prompt.text)
        questions.append((image, question.replace("{explanation}", prompt.explanation)))
    for (sample, _), answer in zip(some, memory.ask(judge, questions), strict=True):
        if not isinstance(answer, str):
            sample.leave_out(JUDGE_FAILED, str(answer))
        elif (value := protocol.read(answer)) is None:
            sample.leave_out(JUDGE_FAILED, f"not understood: {' '.join(answer.split())[:200]!r}")
        else:
            sample.score, sample.note = value, " ".join(answer.split())


def summary(
    samples: Sequence[ExpectedImage], protocol: ScoringProtocol
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Scores, intervals and numbers by category, and "overall", their weighted sum.

    There is no "overall" while a category has no score.
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
