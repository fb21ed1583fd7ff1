"""Tasks: the prompt, the labels and the images that each task makes of a sample.

Tasks have two objectives (`interfaces.OBJECTIVE_OF_TASK`), a loss each. A batch mixes tasks of one.

    text_to_image    caption -> image
    image_to_image   source image, instruction -> image; without a source image the sample's
                     own one is to be reconstructed
    image_to_text    image, questions -> answers; the caption where there is no conversation,
                     and no image where the sample has none
    text_to_text     questions -> answers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from triptych.data_modules.batching.clean_text import MAX_CHARACTERS, clean
from triptych.data_modules.features.cache import FeatureCache
from triptych.data_modules.sources.base import BadSample, ImageRole, Source
from triptych.interfaces import (
    IMAGE_TO_IMAGE,
    IMAGE_TO_TEXT,
    OBJECTIVE_OF_TASK,
    TEXT_TO_IMAGE,
    TEXT_TO_TEXT,
    Preprocessing,
)
from triptych.prompts import (
    GENERATION_INSTRUCTION,
    RECONSTRUCTION_INSTRUCTION,
    PromptError,
    conversation_ids,
    generation_ids,
    reconstruction_ids,
)
from triptych.utils.errors import UserError
from triptych.utils.rng import uniform

SHOWING = (IMAGE_TO_IMAGE, IMAGE_TO_TEXT)
"""Tasks whose prompts may hold an image."""
DESCRIBE = "describe the image"
Turns = list[tuple[str, str]]


@dataclass
class Prompt:
    """Token ids of one sample for the language model."""

    ids: list[int]
    labels: list[int] | None = None
    """Target ids of the answer, IGNORED elsewhere; None for a sample of image generation."""
    shown: ImageRole | None = None
    """The image that the prompt holds placeholders for."""


@dataclass
class Reading:
    """The samples of a source as one task reads them.

    Args:
        source: the samples, open.
        task: a name of `interfaces.OBJECTIVE_OF_TASK`.
        name: what reports call it.
        text_only_ratio: share of image_to_text samples that talk about a caption, without an image.
        conversation_key: name, among a sample's facts, of its list of [question, answer] turns.
        max_turns: take so many turns of a conversation, others each time; None takes all, in order.
        max_characters: of a caption or of one turn.
        features: of the images to make, computed before.
    """

    source: Source
    task: str
    name: str = ""
    text_only_ratio: float = 0.0
    conversation_key: str = "conversation"
    max_turns: int | None = None
    max_characters: int = MAX_CHARACTERS
    features: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.task not in OBJECTIVE_OF_TASK:
            raise UserError(
                f"the task {self.task!r} is unknown; choose one of {list(OBJECTIVE_OF_TASK)}."
            )

    @property
    def objective(self) -> str:
        """IMAGE_GENERATION or LANGUAGE_MODELING, see `Batch.objective`."""
        return OBJECTIVE_OF_TASK[self.task]

    def prompt(self, number: int, sample: int, known: Preprocessing, seed: int = 0) -> Prompt:
        """The prompt of sample `number` of the source, whose global sample number is `sample`.

        Images are not read.

        Raises:
            BadSample: the sample has no text for this task, or one that the model cannot take.
        """
        if known.tokenizer is None:
            return Prompt([])
        try:
            return PROMPTS[self.task](self, number, sample, known, seed)
        except PromptError as error:
            raise BadSample(self.source.key(number), error.reason, str(error)) from error

    def caption(self, number: int, sample: int, seed: int, what: str = "caption") -> str:
        """The caption or instruction, fit for a tokenizer; of several, the one that `sample` draws.

        Raises:
            BadSample: it cannot be used.
        """
        captions = self.source.captions(number)
        drawn = 0
        if len(captions) > 1:
            drawn = int(float(uniform(seed, "caption", [sample])) * len(captions))
        return clean(captions[drawn], self.source.key(number), what, self.max_characters)

    def facts(self, number: int) -> dict:
        facts = self.source.facts(number)
        if not isinstance(facts, dict):
            raise BadSample(self.source.key(number), "facts are no JSON object")
        return facts

    def turns_about(self, number: int, sample: int, seed: int) -> Turns:
        """The conversation about a sample's image; a caption, where there is none."""
        if turns := self.facts(number).get(self.conversation_key):
            return self.checked(turns, number)
        return [(DESCRIBE, self.caption(number, sample, seed))]

    def checked(self, turns: object, number: int) -> Turns:
        """`turns`, fit for a tokenizer, if they are (question, answer) pairs."""
        key = self.source.key(number)
        pairs = isinstance(turns, list) and all(
            isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in turns
        )
        if not pairs or not turns:
            raise BadSample(key, "conversation is no list of [question, answer]")
        most = self.max_characters
        return [(clean(q, key, "question", most), clean(a, key, "answer", most)) for q, a in turns]

    def some(self, turns: list, sample: int, seed: int) -> list:
        """`self.max_turns` of the turns in an order of their own, which `sample` alone decides."""
        if self.max_turns is None or not isinstance(turns, list):
            return turns  # `checked` refuses what is not a list
        chosen = np.random.default_rng([seed, sample]).permutation(len(turns))
        return [turns[n] for n in chosen[: self.max_turns]]


def text_to_image(
    reading: Reading, number: int, sample: int, known: Preprocessing, seed: int
) -> Prompt:
    caption, key = reading.caption(number, sample, seed), reading.source.key(number)
    template = known.training_template
    return Prompt(
        generation_ids(known.tokenizer, caption, known.max_tokens, key=key, template=template)
    )


def image_to_image(
    reading: Reading, number: int, sample: int, known: Preprocessing, seed: int
) -> Prompt:
    shown: ImageRole = "source" if reading.source.has(number, "source") else "image"
    instruction = RECONSTRUCTION_INSTRUCTION
    if shown == "source":
        instruction = reading.caption(number, sample, seed, "instruction")
    ids = reconstruction_ids(
        known.tokenizer,
        known.image_tokens,
        known.max_tokens,
        instruction=instruction,
        template=known.training_template,
        key=reading.source.key(number),
    )
    return Prompt(ids, shown=shown)


def image_to_text(
    reading: Reading, number: int, sample: int, known: Preprocessing, seed: int
) -> Prompt:
    if not reading.source.has(number, "image"):
        return text_to_text(reading, number, sample, known, seed)
    facts = reading.facts(number)
    is_edit = reading.source.has(number, "source")  # whose text is an instruction, not a caption
    if is_edit and not facts.get(reading.conversation_key):
        raise BadSample(reading.source.key(number), "edit without a conversation to learn")
    if (
        not is_edit
        and reading.text_only_ratio
        and float(uniform(seed, "text-only", [sample])) < reading.text_only_ratio
    ):
        told = facts.get("text_conversation")
        told = reading.checked(told, number) if told else None
        turns = about_caption(reading.caption(number, sample, seed), told)
        return conversation(reading, number, turns, known, None)
    turns = reading.some(reading.turns_about(number, sample, seed), sample, seed)
    return conversation(reading, number, turns, known, "image")


def text_to_text(
    reading: Reading, number: int, sample: int, known: Preprocessing, seed: int
) -> Prompt:
    turns = reading.facts(number).get(reading.conversation_key)
    if not turns:
        raise BadSample(
            reading.source.key(number), f"no {reading.conversation_key!r} to learn from"
        )
    return conversation(reading, number, reading.some(turns, sample, seed), known, None)


def conversation(
    reading: Reading, number: int, turns: object, known: Preprocessing, shown: ImageRole | None
) -> Prompt:
    """The prompt of `turns` about the image `shown`, if any."""
    ids, labels = conversation_ids(
        known.tokenizer,
        reading.checked(turns, number),
        known.max_tokens,
        known.image_tokens if shown else 0,
        reading.source.key(number),
    )
    return Prompt(ids, labels, shown)


def about_caption(caption: str, turns: Turns | None) -> Turns:
    """Text-only turns about a caption that is given as a generation prompt.

    The language model so learns to take that very prompt apart before the generator, which reads
    a frozen language model, depends on it.
    """
    turns = turns or [("repeat the caption", caption)]
    prompt = GENERATION_INSTRUCTION.format(caption=caption)
    (_, first), *rest = turns
    return [(prompt, first), *rest]


PROMPTS: dict[str, Callable[[Reading, int, int, Preprocessing, int], Prompt]] = {
    TEXT_TO_IMAGE: text_to_image,
    IMAGE_TO_IMAGE: image_to_image,
    IMAGE_TO_TEXT: image_to_text,
    TEXT_TO_TEXT: text_to_text,
}
