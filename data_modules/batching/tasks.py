"""Tasks: prompt, labels and images of a sample for each task.

Tasks have four objectives (`interfaces.OBJECTIVE_OF_TASK`), each with its loss. A batch mixes
tasks of one objective.

    text_to_image    caption -> image
    image_to_image   source image, instruction -> image; a sample without a source image is
                     reconstructed
    image_to_text    image, questions -> answers; the caption if there is no conversation, and
                     without an image if the sample has none
    text_to_text     questions -> answers
    interleaved      a conversation with images in any message -> what the assistant says in it,
                     `[IMG]` before each of its images included
    interleaved_images
                     a conversation up to each of the assistant's images -> this image
    text_to_reward   caption -> an image that a reward scores; samples need no image
    text_to_preference
                     caption -> the better of two images; the other is named in the metadata
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from triptych.conversations import interleaved_ids
from triptych.data_modules.batching.caption_dropout import NO_DROPOUT, CaptionDropout
from triptych.data_modules.batching.clean_text import MAX_CHARACTERS, clean
from triptych.data_modules.batching.messages import SampleMessage, read_messages
from triptych.data_modules.features.cache import FeatureCache
from triptych.data_modules.sources.base import BadSample, DataSource, ImageRole
from triptych.interfaces import (
    IMAGE_TO_IMAGE,
    IMAGE_TO_TEXT,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    OBJECTIVE_OF_TASK,
    TEXT_TO_IMAGE,
    TEXT_TO_PREFERENCE,
    TEXT_TO_REWARD,
    TEXT_TO_TEXT,
    Preprocessing,
)
from triptych.prompts import (
    GENERATION_INSTRUCTION,
    RECONSTRUCTION_INSTRUCTION,
    START_OF_IMAGE,
    PromptError,
    conversation_ids,
    generation_ids,
    reconstruction_ids,
    token_id,
)
from triptych.utils.errors import UserError
from triptych.utils.rng import uniform

IMAGE_PROMPT_TASKS = (IMAGE_TO_IMAGE, IMAGE_TO_TEXT, INTERLEAVED, INTERLEAVED_IMAGES)
"""Tasks whose prompts may hold an image."""
SOURCE_TASKS = (IMAGE_TO_IMAGE, INTERLEAVED_IMAGES)
"""Tasks whose images may have a source that the generator sees."""
DESCRIBE = "describe the image"
DROPOUT_STREAM = 1
"""Draws of `caption_dropout` beside those of turns, which have no stream number."""
Turns = list[tuple[str, str]]


@dataclass
class Prompt:
    """Token ids of one sample for the language model."""

    ids: list[int]
    labels: list[int] | None = None
    """Target ids of the answer, IGNORED elsewhere; None for image generation."""
    image_role: ImageRole | None = None
    """Role of the image that the prompt holds placeholders for."""
    image_names: tuple[str, ...] = ()
    """Names of the images that it holds placeholders for in order; of a conversation."""
    targets: tuple[NamedTarget, ...] = ()
    """The images to make in a conversation."""
    rejected: str = ""
    """Name of the image that is not preferred, of a pair."""
    caption: str = ""
    """The caption, for a reward."""
    facts: dict = field(default_factory=dict)
    """Metadata of the sample, for a reward."""


@dataclass(frozen=True)
class NamedTarget:
    """An image of a conversation that is to be made."""

    name: str
    place: int
    """Index of its `[IMG]` in the prompt."""
    source: str | None
    """Name of the image before it in the conversation."""


@dataclass
class TaskDataset:
    """The samples of a source as one task reads them.

    Args:
        source: open source.
        task: task of the samples, a key of `interfaces.OBJECTIVE_OF_TASK`.
        name: name in reports.
        text_only_ratio: fraction of the image_to_text samples that are a conversation about the
            caption, without the image.
        conversation_key: key of the [question, answer] turns in the metadata of a sample.
        max_turns: maximum number of turns of a conversation, drawn anew each time; None takes all,
            in order.
        caption_dropout: words left out of captions of images to generate.
        max_characters: length limit of a caption or of one turn.
        features: cached features of the target images.
    """

    source: DataSource
    task: str
    name: str = ""
    _: KW_ONLY
    text_only_ratio: float = 0.0
    conversation_key: str = "conversation"
    max_turns: int | None = None
    caption_dropout: CaptionDropout = NO_DROPOUT
    max_characters: int = MAX_CHARACTERS
    features: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.task not in OBJECTIVE_OF_TASK:
            raise UserError(
                f"the task {self.task!r} is unknown; choose one of {list(OBJECTIVE_OF_TASK)}."
            )

    @property
    def objective(self) -> str:
        """Objective of the task, see `Batch.objective`."""
        return OBJECTIVE_OF_TASK[self.task]

    @property
    def has_all_features(self) -> bool:
        """Whether every shard has cached features: a sample without any is then a bad sample."""
        return self.features is not None and self.features.complete_for(self.task)

    def prompt(self, number: int, sample: int, processor: Preprocessing, seed: int = 0) -> Prompt:
        """Make the prompt of a sample; reads no images.

        Args:
            number: number of the sample in the source.
            sample: global sample number, which seeds the draws.
            processor: the model's tokenizer and limits; without a tokenizer the prompt is empty.
            seed: random seed of the draws.

        Raises:
            BadSample: the sample has no text for this task, or one that the model cannot take.
        """
        if processor.tokenizer is None:
            return Prompt([])
        try:
            return PROMPT_BUILDERS[self.task](self, number, sample, processor, seed)
        except PromptError as error:
            raise BadSample(self.source.key(number), error.reason, str(error)) from error

    def caption(self, number: int, sample: int, seed: int, label: str = "caption") -> str:
        """Clean the caption or instruction; of several, draw one for `sample`.

        Raises:
            BadSample: it is unusable.
        """
        captions = self.source.captions(number)
        choice = 0
        if len(captions) > 1:
            choice = int(float(uniform(seed, "caption", [sample])) * len(captions))
        return clean(captions[choice], self.source.key(number), label, self.max_characters)

    def metadata(self, number: int) -> dict:
        """Metadata of a sample.

        Raises:
            BadSample: it is not a dict.
        """
        metadata = self.source.metadata(number)
        if not isinstance(metadata, dict):
            raise BadSample(self.source.key(number), "metadata is not a JSON object")
        return metadata

    def conversation_turns(self, number: int, sample: int, seed: int) -> Turns:
        """Turns about the image of a sample; without a conversation its caption is the answer."""
        if turns := self.metadata(number).get(self.conversation_key):
            return self.validate_turns(turns, number)
        return [(DESCRIBE, self.caption(number, sample, seed))]

    def validate_turns(self, turns: object, number: int) -> Turns:
        """Check and clean (question, answer) turns.

        Raises:
            BadSample: they are not pairs of texts, or a text is unusable.
        """
        key = self.source.key(number)
        pairs = isinstance(turns, list) and all(
            isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in turns
        )
        if not pairs or not turns:
            raise BadSample(key, "conversation is not a list of [question, answer]")
        limit = self.max_characters
        return [
            (clean(question, key, "question", limit), clean(answer, key, "answer", limit))
            for question, answer in turns
        ]

    def sample_turns(self, turns: list, sample: int, seed: int) -> list:
        """Draw `max_turns` turns, in random order, as a function of (seed, `sample`)."""
        if self.max_turns is None or not isinstance(turns, list):
            return turns  # `validate_turns` refuses another type
        chosen = np.random.default_rng([seed, sample]).permutation(len(turns))
        return [turns[n] for n in chosen[: self.max_turns]]


def text_to_image(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a caption."""
    caption, key = dataset.caption(number, sample, seed), dataset.source.key(number)
    if dataset.caption_dropout.probability:
        rng = np.random.default_rng([seed, sample, DROPOUT_STREAM])
        caption = dataset.caption_dropout(caption, rng)
    template = processor.training_template
    ids = generation_ids(
        processor.tokenizer, caption, processor.max_tokens, key=key, template=template
    )
    return Prompt(ids)


def text_to_reward(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a caption in the template of inference: its image is sampled as there."""
    caption, key = dataset.caption(number, sample, seed), dataset.source.key(number)
    ids = generation_ids(
        processor.tokenizer, caption, processor.max_tokens, key=key, template=processor.template
    )
    return Prompt(ids, caption=caption, facts=dataset.metadata(number))


def text_to_preference(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a pair of images in the template of inference, by which they were made."""
    caption, key = dataset.caption(number, sample, seed), dataset.source.key(number)
    rejected = dataset.metadata(number).get("rejected")
    if not isinstance(rejected, str):
        raise BadSample(key, "no 'rejected' in its metadata: the name of the worse image")
    ids = generation_ids(
        processor.tokenizer, caption, processor.max_tokens, key=key, template=processor.template
    )
    return Prompt(ids, rejected=rejected)


def image_to_image(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of an edit, or of a reconstruction."""
    role: ImageRole = "source" if dataset.source.has_image(number, "source") else "image"
    instruction = RECONSTRUCTION_INSTRUCTION
    if role == "source":
        instruction = dataset.caption(number, sample, seed, "instruction")
    ids = reconstruction_ids(
        processor.tokenizer,
        processor.image_tokens,
        processor.max_tokens,
        instruction=instruction,
        template=processor.training_template,
        key=dataset.source.key(number),
    )
    return Prompt(ids, image_role=role)


def image_to_text(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a conversation about an image, or about a caption without the image."""
    if not dataset.source.has_image(number, "image"):
        return text_to_text(dataset, number, sample, processor, seed)
    metadata = dataset.metadata(number)
    # the text of an edit is an instruction, not a caption
    is_edit = dataset.source.has_image(number, "source")
    if is_edit and not metadata.get(dataset.conversation_key):
        raise BadSample(dataset.source.key(number), "edit without a conversation to learn")
    if (
        not is_edit
        and dataset.text_only_ratio
        and float(uniform(seed, "text-only", [sample])) < dataset.text_only_ratio
    ):
        turns = metadata.get("text_conversation")
        turns = dataset.validate_turns(turns, number) if turns else None
        turns = text_only_turns(dataset.caption(number, sample, seed), turns)
        return conversation_prompt(dataset, number, turns, processor, None)
    turns = dataset.sample_turns(dataset.conversation_turns(number, sample, seed), sample, seed)
    return conversation_prompt(dataset, number, turns, processor, "image")


def text_to_text(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a conversation without an image."""
    turns = dataset.metadata(number).get(dataset.conversation_key)
    if not turns:
        raise BadSample(
            dataset.source.key(number), f"no {dataset.conversation_key!r} to learn from"
        )
    return conversation_prompt(
        dataset, number, dataset.sample_turns(turns, sample, seed), processor, None
    )


def interleaved(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a whole conversation, all answers of which are learned."""
    messages, ids, labels = conversation_of(dataset, number, processor)
    if not any(message.role == "assistant" for message in messages):
        raise BadSample(dataset.source.key(number), "messages without an answer to learn")
    names = tuple(name for message in messages for name in message.images)
    return Prompt(ids, labels, image_names=names)


def interleaved_images(
    dataset: TaskDataset, number: int, sample: int, processor: Preprocessing, seed: int
) -> Prompt:
    """Make the prompt of a conversation up to its last image, each of which is to be made."""
    messages, ids, _ = conversation_of(dataset, number, processor)
    shown = [(name, m.role == "assistant") for m in messages for name in m.images]
    made = [place for place, (_, answers) in enumerate(shown) if answers]
    if not made:
        raise BadSample(dataset.source.key(number), "messages without an image to make")
    start = token_id(processor.tokenizer, START_OF_IMAGE)
    places = [place for place, token in enumerate(ids) if token == start]
    names = [name for name, _ in shown]
    targets = tuple(
        NamedTarget(names[image], place, names[image - 1] if image else None)
        for image, place in zip(made, places, strict=True)
    )
    return Prompt(ids[: places[-1] + 1], image_names=tuple(names[: made[-1]]), targets=targets)


def conversation_of(
    dataset: TaskDataset, number: int, processor: Preprocessing
) -> tuple[list[SampleMessage], list[int], list[int]]:
    """Messages, ids and labels of a conversation."""
    key = dataset.source.key(number)
    messages = read_messages(dataset.metadata(number), key, dataset.max_characters)
    turns = [message.with_tokens(processor.image_tokens) for message in messages]
    return messages, *interleaved_ids(processor.tokenizer, turns, processor.max_tokens, key)


def conversation_prompt(
    dataset: TaskDataset,
    number: int,
    turns: object,
    processor: Preprocessing,
    role: ImageRole | None,
) -> Prompt:
    """Make the prompt of a conversation, about the image of a role if any."""
    ids, labels = conversation_ids(
        processor.tokenizer,
        dataset.validate_turns(turns, number),
        processor.max_tokens,
        processor.image_tokens if role else 0,
        dataset.source.key(number),
    )
    return Prompt(ids, labels, role)


def text_only_turns(caption: str, turns: Turns | None) -> Turns:
    """Text-only turns about a caption that is given as a generation prompt.

    They train the language model on this prompt before the generator, which is conditioned on the
    frozen language model, depends on it.
    """
    turns = turns or [("repeat the caption", caption)]
    prompt = GENERATION_INSTRUCTION.format(caption=caption)
    (_, first), *rest = turns
    return [(prompt, first), *rest]


PROMPT_BUILDERS: dict[str, Callable[[TaskDataset, int, int, Preprocessing, int], Prompt]] = {
    TEXT_TO_IMAGE: text_to_image,
    IMAGE_TO_IMAGE: image_to_image,
    IMAGE_TO_TEXT: image_to_text,
    TEXT_TO_TEXT: text_to_text,
    INTERLEAVED: interleaved,
    INTERLEAVED_IMAGES: interleaved_images,
    TEXT_TO_REWARD: text_to_reward,
    TEXT_TO_PREFERENCE: text_to_preference,
}
