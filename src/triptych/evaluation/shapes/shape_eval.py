"""Accuracy in the shapes world, and the accuracy of chance.

One score for each panel: generated images against their captions, reconstructions against the
scenes of their originals, answers about images against the expected ones. Edits are scored in
`edit_eval`. The samples are drawn in memory, in the order of the evaluation shards, and none is a
training sample. A score follows from weights and seed; batch size, threads and processor change
images only by rounding.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy
from torch import Tensor

from triptych.evaluation.shapes.common import (
    WORLD_SEED,
    ImageOptions,
    ShapesEvaluator,
    batches,
    generate_in_batches,
)
from triptych.evaluation.statistics import mean
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.shapes_world.captions import Request, request_of
from triptych.shapes_world.checker import answer_is_right, chance_levels, shape_eval
from triptych.shapes_world.questions import questions as draw_questions
from triptych.shapes_world.shards import make_sample
from triptych.shapes_world.world import Scene, draw
from triptych.utils.errors import UserError
from triptych.utils.images import to_tensor

QUESTIONS_PER_IMAGE = 2
MAX_EDITS = 200  # edits among all scores
MAX_ANSWER_TOKENS = 16  # the tiny tokenizer needs 6 for "a large orange triangle"


@dataclass(frozen=True)
class EvalSample:
    """An evaluation sample of the shapes world."""

    caption: str
    request: Request
    scene: Scene

    @property
    def image(self) -> numpy.ndarray:
        """The true image, uint8 [48,48,3]."""
        return draw(self.scene)


@dataclass(frozen=True)
class ImageQuestion:
    """A question about image `number` of the evaluation samples, and the expected answer."""

    number: int
    question: str
    answer: str
    type: str


class ShapeEval(ShapesEvaluator):
    """Share of generated images that show exactly what their caption requires, by task.

    Args:
        split: "eval" for held-out captions, "unseen" for pairs of colour and kind never trained.
        num_images: number of captions, and of images.
        seed, batch_size, generation_config: arguments of `ImageEvaluator`.
    """

    def __init__(
        self,
        split: Literal["eval", "unseen"] = "eval",
        num_images: int = 240,
        *,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(
            num_images, seed=seed, batch_size=batch_size, generation_config=generation_config
        )
        self.split = split

    def __call__(self, model: Any) -> dict[str, float]:
        samples = examples(self.split, self.num_images)
        images = generate_for(model, samples, self.options)
        return shape_eval(images, [sample.request for sample in samples])


# --- samples --------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def examples(split: str, number: int) -> tuple[EvalSample, ...]:
    """The first `number` samples of "eval" or "unseen"; the tasks alternate."""
    if number < 1:
        raise UserError(f"the shapes world cannot be scored on {number} images; give 1 or more.")
    return tuple(_example(split, index) for index in range(number))


def _example(split: str, index: int) -> EvalSample:
    facts = json.loads(make_sample(split, index, WORLD_SEED)["json"])
    return EvalSample(
        facts["caption"], Request.from_dict(facts["request"]), Scene.from_dict(facts["scene"])
    )


def questions_about(samples: Sequence[EvalSample]) -> list[ImageQuestion]:
    """Two random questions about each sample, seeded by its number."""
    return [
        ImageQuestion(number, *turn)
        for number, sample in enumerate(samples)
        for turn in draw_questions(
            sample.scene, numpy.random.default_rng([WORLD_SEED, number]), QUESTIONS_PER_IMAGE
        )
    ]


# --- outputs of the model -------------------------------------------------------------------------


def generate_for(model: Any, samples: Sequence[EvalSample], options: ImageOptions) -> numpy.ndarray:
    """Generate one image for each caption, uint8 [N,48,48,3]; see `ImageOptions`."""

    def generate(batch: range, seeds: list[int]) -> Tensor:
        captions = [samples[n].caption for n in batch]
        return inference_of(model).generate(captions, seeds=seeds, config=options.config)

    return generate_in_batches(generate, len(samples), options)


def reconstruct_for(
    model: Any, samples: Sequence[EvalSample], options: ImageOptions
) -> numpy.ndarray:
    """Reconstruct the true images, uint8 [N,48,48,3]; see `ImageOptions`."""

    def reconstruct(batch: range, seeds: list[int]) -> Tensor:
        originals = to_tensor([samples[n].image for n in batch])
        return inference_of(model).reconstruct(originals, seeds=seeds, config=options.config)

    return generate_in_batches(reconstruct, len(samples), options)


def answers_for(
    model: Any,
    samples: Sequence[EvalSample],
    questions: Sequence[ImageQuestion],
    batch_size: int = 64,
) -> list[str]:
    """The model's answer to each question."""
    return [
        answer
        for numbers in batches(len(questions), batch_size)
        for answer in inference_of(model).answer(
            to_tensor([samples[questions[n].number].image for n in numbers]),
            [questions[n].question for n in numbers],
            max_new_tokens=MAX_ANSWER_TOKENS,
        )
    ]


# --- scores ---------------------------------------------------------------------------------------


def question_answering_score(
    model: Any, num_images: int = 240, batch_size: int = 64
) -> dict[str, float]:
    """Share of correct answers about held-out images by type, and the "mean" of all."""
    samples = examples("eval", num_images)
    questions = questions_about(samples)
    return score_answers(questions, answers_for(model, samples, questions, batch_size))


def score_answers(questions: Sequence[ImageQuestion], answers: Sequence[str]) -> dict[str, float]:
    """Share of correct answers by type of question, and the "mean" over all questions."""
    pairs = zip(questions, answers, strict=True)
    return by_type(questions, [answer_is_right(answer, each.answer) for each, answer in pairs])


def by_type(questions: Sequence[ImageQuestion], right: Sequence[bool]) -> dict[str, float]:
    """Share of `right` by type of question, and the "mean" over all questions."""
    of_type = defaultdict(list)
    for question, each in zip(questions, right, strict=True):
        of_type[question.type].append(each)
    return {name: mean(of_type[name]) for name in sorted(of_type)} | {"mean": mean(right)}


def chance(num_images: int = 240, split: str = "eval") -> dict[str, Any]:
    """Scores of a model that ignores its input.

    Images: the true image of another sample. Answers: the most frequent one of that type among
    the questions that are scored, which is slightly above chance.
    """
    samples = examples(split, num_images)
    images, scenes = zip(*((sample.image, sample.scene) for sample in samples), strict=True)
    questions = questions_about(samples)
    return {
        "shape_eval": chance_levels(images, [sample.request for sample in samples]),
        "reconstruction": chance_levels(images, [request_of(s) for s in scenes])["description"],
        "question_answering": score_answers(questions, _most_frequent(questions)),
    }


def _most_frequent(questions: Sequence[ImageQuestion]) -> list[str]:
    counts = defaultdict(Counter)
    for each in questions:
        counts[each.type][each.answer] += 1
    return [counts[each.type].most_common(1)[0][0] for each in questions]
