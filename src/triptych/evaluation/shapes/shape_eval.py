"""Accuracy in the shapes world, and that of chance.

Three questions, one for each panel: does a generated image show what its caption asks, does a
reconstruction show the scene of its original, is an answer about an image the expected one.
Edits have a file of their own. The samples are drawn in memory, in the order of the evaluation
shards, and none is a training sample. A score follows only from the weights and a seed: batch
size, threads and processor change images by rounding, which shows only where a verdict is close.
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
    make_in_batches,
)
from triptych.evaluation.statistics import mean
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.shapes_world.captions import Request, request_of
from triptych.shapes_world.checker import answer_is_right, chance_levels, shape_eval
from triptych.shapes_world.questions import questions
from triptych.shapes_world.shards import make_sample
from triptych.shapes_world.world import Scene, draw
from triptych.utils.errors import UserError
from triptych.utils.images import to_tensor

QUESTIONS_PER_IMAGE = 2
EDITS = 200  # scored among all scores, at most
LONGEST_ANSWER = 16  # tokens; the tiny tokenizer needs 6 for "a large orange triangle"


@dataclass(frozen=True)
class EvalSample:
    """One evaluation sample."""

    caption: str
    request: Request
    scene: Scene

    @property
    def image(self) -> numpy.ndarray:
        """The true image, uint8 [48,48,3]."""
        return draw(self.scene)


@dataclass(frozen=True)
class Asked:
    """A question about image `number` of the evaluation samples."""

    number: int
    question: str
    answer: str
    type: str


class ShapeEval(ShapesEvaluator):
    """The share of generated images that show exactly what their caption asks, by task.

    Args:
        split: "eval" for held-out captions, "unseen" for pairs of colour and kind never trained.
        num_images: number of captions, and of images.
        seed, batch_size, generation_config: see `ShapesEvaluator`.
    """

    def __init__(
        self,
        split: Literal["eval", "unseen"] = "eval",
        num_images: int = 240,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(num_images, seed, batch_size, generation_config)
        self.split = split

    def __call__(self, model: Any) -> dict[str, float]:
        samples = examples(self.split, self.num_images)
        images = generate_for(model, samples, self.options)
        return shape_eval(images, [sample.request for sample in samples])


# --- samples --------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def examples(split: str, number: int) -> tuple[EvalSample, ...]:
    """The first `number` samples of "eval" or "unseen", the tasks in turn."""
    if number < 1:
        raise UserError(f"the shapes world cannot be scored on {number} images; give 1 or more.")
    return tuple(_example(split, index) for index in range(number))


def _example(split: str, index: int) -> EvalSample:
    facts = json.loads(make_sample(split, index, WORLD_SEED)["json"])
    return EvalSample(
        facts["caption"], Request.from_dict(facts["request"]), Scene.from_dict(facts["scene"])
    )


def ask_about(samples: Sequence[EvalSample]) -> list[Asked]:
    """Two random questions about each sample; they depend only on its number."""
    return [
        Asked(number, *turn)
        for number, sample in enumerate(samples)
        for turn in questions(
            sample.scene, numpy.random.default_rng([WORLD_SEED, number]), QUESTIONS_PER_IMAGE
        )
    ]


# --- what the model makes of them -----------------------------------------------------------------


def generate_for(
    model: Any,
    samples: Sequence[EvalSample],
    options: ImageOptions,
) -> numpy.ndarray:
    """One image for each caption, uint8 [N,48,48,3]; see `ImageOptions`."""

    def make(batch: range, seeds: list[int]) -> Tensor:
        captions = [samples[n].caption for n in batch]
        return inference_of(model).generate(captions, seeds=seeds, config=options.config)

    return make_in_batches(make, len(samples), options)


def reconstruct_for(
    model: Any,
    samples: Sequence[EvalSample],
    options: ImageOptions,
) -> numpy.ndarray:
    """The true images through encoder and decoder, uint8 [N,48,48,3]; see `ImageOptions`."""

    def make(batch: range, seeds: list[int]) -> Tensor:
        originals = to_tensor([samples[n].image for n in batch])
        return inference_of(model).reconstruct(originals, seeds=seeds, config=options.config)

    return make_in_batches(make, len(samples), options)


def answers_for(
    model: Any, samples: Sequence[EvalSample], asked: Sequence[Asked], batch_size: int = 64
) -> list[str]:
    """The model's answer to each question."""
    return [
        answer
        for numbers in batches(len(asked), batch_size)
        for answer in inference_of(model).answer(
            to_tensor([samples[asked[n].number].image for n in numbers]),
            [asked[n].question for n in numbers],
            max_new_tokens=LONGEST_ANSWER,
        )
    ]


# --- scores ---------------------------------------------------------------------------------------


def question_answering_score(
    model: Any, num_images: int = 240, batch_size: int = 64
) -> dict[str, float]:
    """The share of right answers about held-out images by type, and the "mean" of all."""
    samples = examples("eval", num_images)
    asked = ask_about(samples)
    return score_answers(asked, answers_for(model, samples, asked, batch_size))


def score_answers(asked: Sequence[Asked], given: Sequence[str]) -> dict[str, float]:
    """The share of right answers by type of question, and the "mean" over all questions."""
    pairs = zip(asked, given, strict=True)
    return by_type(asked, [answer_is_right(answer, turn.answer) for turn, answer in pairs])


def by_type(asked: Sequence[Asked], right: Sequence[bool]) -> dict[str, float]:
    """The share of `right` by type of question, and the "mean" over all questions."""
    of_type = defaultdict(list)
    for turn, each in zip(asked, right, strict=True):
        of_type[turn.type].append(each)
    return {name: mean(of_type[name]) for name in sorted(of_type)} | {"mean": mean(right)}


def chance(num_images: int = 240, split: str = "eval") -> dict[str, Any]:
    """Scores of a model that has learned nothing of its input.

    Images: the true image of another sample. Answers: always the most frequent one of that
    type among these very questions, which is a little more than chance.
    """
    samples = examples(split, num_images)
    images, scenes = zip(*((sample.image, sample.scene) for sample in samples), strict=True)
    asked = ask_about(samples)
    return {
        "shape_eval": chance_levels(images, [sample.request for sample in samples]),
        "reconstruction": chance_levels(images, [request_of(s) for s in scenes])["description"],
        "question_answering": score_answers(asked, _most_frequent(asked)),
    }


def _most_frequent(asked: Sequence[Asked]) -> list[str]:
    counts = defaultdict(Counter)
    for turn in asked:
        counts[turn.type][turn.answer] += 1
    return [counts[turn.type].most_common(1)[0][0] for turn in asked]
