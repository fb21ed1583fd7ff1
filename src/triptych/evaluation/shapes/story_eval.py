"""Accuracy of stories in the shapes world: conversations with images, turn by turn.

A story has five turns: it begins with a caption, then come edits of the last image and questions
about it, in an order of its own. Each turn is about what the model really made: the checker reads
the last image of the conversation, and an edit or a question of that scene is drawn; the edited
scene is reserved for evaluation wherever the image has such an edit. Without a readable image the
turn is wrong. Answers come from the model's own chat, with its images shown to it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy
from PIL import Image

from triptych.evaluation.shapes.common import (
    SEEDS,
    WORLD_SEED,
    ImageOptions,
    ShapesEvaluator,
    batches,
)
from triptych.evaluation.statistics import mean, wilson
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.prompts import PromptError
from triptych.shapes_world.captions import TASKS
from triptych.shapes_world.checker import answer_is_right, check, read
from triptych.shapes_world.stories import Turn, draw_turn, edit_turn, question_turn
from triptych.shapes_world.world import PIXELS, Scene
from triptych.utils.errors import UserError

TURNS = 5
LATER_TURNS = (("edit", "edit", "question", "question"), ("edit", "edit", "edit", "question"))
"""Kinds of the turns after the first, in any order."""
MAX_IMAGES = 4
MAX_TOKENS = 48  # of an answer: more than any right one has


class StoryEval(ShapesEvaluator):
    """Shares of correct turns of stories, as of `turn_scores`.

    Args:
        num_images: number of stories, of five turns each.
        seed, batch_size, generation_config: arguments of `ImageEvaluator`.
    """

    parts = (*ShapesEvaluator.parts, "vision_tower", "lm_head")

    def __init__(
        self,
        num_images: int = 120,
        *,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(
            num_images, seed=seed, batch_size=batch_size, generation_config=generation_config
        )

    def __call__(self, model: Any) -> dict[str, float]:
        right = [story.right for story in tell_stories(model, self.num_images, self.options)]
        scores = {
            name: mean(value for story in values for value in story)
            for name, values in turn_scores(right).items()
            if any(values)
        }
        low, high = wilson(scores["turn_3"], self.num_images)
        return {**scores, "turn_3_low": low, "turn_3_high": high}


def turn_scores(right: Sequence[Sequence[float]]) -> dict[str, list[list[float]]]:
    """Turns of stories 0 to len(right), 1 if correct, by what is scored; a list for each story.

    "turn_1" to "turn_5" in the order of the conversation; "image_1" and so on, the images alone;
    "images" and "answers", all of them; "whole", 1 for a story without a wrong turn.
    """
    scores: dict[str, list[list[float]]] = {f"turn_{place + 1}": [] for place in range(TURNS)}
    scores |= {f"image_{image + 1}": [] for image in range(MAX_IMAGES)}
    scores |= {"images": [], "answers": [], "whole": []}
    for number, turns in enumerate(right):
        values = [float(each) for each in turns]
        questions = [kind == "question" for kind in kinds(number)]
        images = [value for value, asked in zip(values, questions, strict=True) if not asked]
        for place, value in enumerate(values):
            scores[f"turn_{place + 1}"].append([value])
        for place in range(MAX_IMAGES):
            scores[f"image_{place + 1}"].append(images[place : place + 1])
        scores["images"].append(images)
        answers = [value for value, asked in zip(values, questions, strict=True) if asked]
        scores["answers"].append(answers)
        scores["whole"].append([float(all(values))])
    return scores


@lru_cache(maxsize=4096)
def kinds(number: int) -> tuple[str, ...]:
    """Kinds of the turns of an evaluation story."""
    later = LATER_TURNS[number % len(LATER_TURNS)]
    order = _rng(number, TURNS).permutation(len(later))
    return ("draw", *(later[place] for place in order))


def next_turn(number: int, place: int, scene: Scene | None) -> Turn | None:
    """Turn `place`, from 0, of an evaluation story about a scene; None if it allows none."""
    kind, rng = kinds(number)[place], _rng(number, place)
    if kind == "draw":
        return draw_turn(rng, "eval", TASKS[number % len(TASKS)])
    if scene is None or not scene.shapes:
        return None
    if kind == "question":
        return question_turn(scene, rng)
    return edit_turn(scene, rng, "eval") or edit_turn(scene, rng, "train")


def _rng(number: int, place: int) -> numpy.random.Generator:
    # apart from the streams of the shards
    source = numpy.random.SeedSequence([WORLD_SEED, 1 << 16, number, place])
    return numpy.random.Generator(numpy.random.PCG64(source))


@dataclass
class Telling:
    """A story while it is told."""

    number: int
    messages: list[dict[str, Any]] = field(default_factory=list)
    scene: Scene | None = None
    """Scene of the last image; None if there is none, or it is unclear."""
    right: list[bool] = field(default_factory=list)
    turn: Turn | None = None
    """The turn that is being answered."""
    is_over: bool = False
    """Whether the conversation cannot go on."""

    def ask(self, place: int) -> None:
        """Add the question of a turn, if there is one."""
        self.turn = None if self.is_over else next_turn(self.number, place, self.scene)
        if self.turn is not None:
            self.messages.append({"role": "user", "content": self.turn.prompt})

    def take(self, content: list[str | Image.Image]) -> None:
        """Judge the answer, and add it to the conversation."""
        images = [part for part in content if not isinstance(part, str)]
        texts = [part for part in content if isinstance(part, str)]
        if self.turn.request is None:
            text = " ".join(texts)
            self.right.append(not images and answer_is_right(text, self.turn.answer))
        else:
            arrays = [_world_array(image) for image in images]
            self.right.append(len(arrays) == 1 and check(arrays[0], self.turn.request))
        if images:
            self.scene = read(_world_array(images[-1]))
        self.messages.append({"role": "assistant", "content": content})
        self.is_over = not any(not isinstance(part, str) or part.strip() for part in content)


def tell_stories(model: Any, number: int, options: ImageOptions) -> list[Telling]:
    """Tell `number` stories with a model, and judge their turns."""
    if number < 1:
        raise UserError(f"stories cannot be scored on {number} of them; give 1 or more.")
    numbers = list(range(number)) if options.numbers is None else list(options.numbers)
    told: list[Telling] = []
    for batch in batches(number, options.batch_size):
        stories = [Telling(numbers[n]) for n in batch]
        for place in range(TURNS):
            _tell_turn(model, stories, place, options)
        told += stories
    return told


def _tell_turn(model: Any, stories: list[Telling], place: int, options: ImageOptions) -> None:
    for story in stories:
        story.ask(place)
    asked = [story for story in stories if story.turn is not None]
    while asked:
        # no two images have a seed in common: an answer's next images have the next seeds
        seeds = [((options.seed * SEEDS + s.number) * TURNS + place) * 64 for s in asked]
        try:
            outputs = inference_of(model).converse(
                [story.messages for story in asked],
                seeds=seeds,
                max_new_tokens=MAX_TOKENS,
                config=options.config,
            )
        except PromptError as error:  # longer than the context: that story ends here
            story = asked.pop(error.conversation)
            story.turn, story.is_over = None, True
            continue
        for story, output in zip(asked, outputs, strict=True):
            story.take(output.content)
        break
    for story in stories:
        if story.turn is None:
            story.right.append(False)


def _world_array(image: Image.Image) -> numpy.ndarray:
    """The image uint8 [48,48,3].

    Raises:
        UserError: it has another size.
    """
    if image.size != (PIXELS, PIXELS):
        wide, high = image.size
        raise UserError(
            f"the shapes world is checked in images of {PIXELS}x{PIXELS} pixels, but the model "
            f"makes {wide}x{high}; use a model of that size, such as conf/presets/tiny.yaml."
        )
    return numpy.asarray(image.convert("RGB"))
