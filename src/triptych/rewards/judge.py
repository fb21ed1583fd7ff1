"""A vision-language model that is asked about each image, as a reward."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.evaluation.judges.base import Answer, Judge, JudgeFailed
from triptych.interfaces import Reward, RewardSample
from triptych.utils.errors import UserError
from triptych.utils.images import to_images

QUESTION = 'Rate from 0 to 10 how well this image shows "{prompt}". Answer with the number alone.'
NUMBER = re.compile(r"\d+(?:\.\d+)?")


class JudgeReward(Reward):
    """The number in a judge's answer over its scale, from 0 to 1; "yes" is 1 and "no" is 0.

    Args:
        judge: a vision-language model; `EndpointJudge` asks one behind OpenAI's HTTP interface,
            several questions at a time, and repeats requests that fail.
        question: what is asked, with {prompt}.
        scale: highest number of an answer.

    Raises:
        UserError: the question does not name {prompt}.
    """

    name = "judge"

    def __init__(self, judge: Judge, question: str = QUESTION, scale: float = 10.0) -> None:
        if "{prompt}" not in question:
            raise UserError(f"the question {question[:60]!r} does not say {{prompt}}; put it in.")
        self.judge, self.question, self.scale = judge, question, scale

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        questions = [self.question.replace("{prompt}", each.prompt) for each in samples]
        answers: dict[int, Answer] = {}
        self.judge.ask(list(zip(to_images(images), questions, strict=True)), answers.__setitem__)
        return torch.tensor([self._score(answers[n]) for n in range(len(samples))])

    def _score(self, answer: Answer) -> float:
        """Score of an answer.

        Raises:
            UserError: there is none after all attempts, or it says nothing.
        """
        if isinstance(answer, JudgeFailed):
            raise UserError(
                f"{answer}; the run stops with a checkpoint: resume it (--ckpt_path=auto) when the "
                "judge answers."
            )
        words = answer.strip().lower()
        if words.startswith(("yes", "no")):
            return float(words.startswith("yes"))
        number = NUMBER.search(answer)
        if number is None or not 0 <= float(number[0]) <= self.scale:
            raise UserError(
                f"the judge {self.judge.name} answered {answer[:60]!r} in place of yes, no or a "
                f"number from 0 to {self.scale:g}; ask it otherwise (question)."
            )
        return float(number[0]) / self.scale
