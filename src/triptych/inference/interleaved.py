"""Answers with images: the model says `[IMG]`, the image is made there, and the answer goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from triptych.inference.edit_source import check_edit, source_of_images
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_generation import condition_of_rows, negative_condition
from triptych.interfaces import Sampling, Source
from triptych.modules.text_generation import ChatOutput, DetokenizerState, image_tokens, write
from triptych.prompts import image
from triptych.utils.errors import UserError
from triptych.utils.images import square, to_images
from triptych.utils.tokens import encode

OnPart = Callable[[int, str | Image.Image], None]
"""Called with (index of the conversation, new piece of text or whole image of its answer)."""
ROUND = 1 << 40  # added to the seed of sampled tokens after each image


@dataclass
class OpenAnswer:
    """A conversation whose answer is being written."""

    ids: list[int]
    """The conversation and what is written of the answer."""
    shown: list[tuple[Tensor, Tensor]]
    """Patches [S,patch] and grid [1,3] of each of its images."""
    last_image: Image.Image | None
    """The image that a next one is an edit of, for a generator that sees it."""
    seed: int
    _: KW_ONLY
    content: list[str | Image.Image] = field(default_factory=list)
    images: int = 0
    """Number of images in the answer."""
    written: int = 0
    """Number of tokens that the model wrote."""
    finished: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    def output(self) -> ChatOutput:
        """The answer as it is now."""
        text = "\n".join(part for part in self.content if isinstance(part, str))
        return ChatOutput(
            text, self.prompt_tokens, self.written, self.finished or "length", self.content
        )


@dataclass
class AnswerWriter:
    """Writes answers of several conversations together, texts and images.

    Args:
        model: a UnifiedModule.
        max_new_tokens: maximum number of tokens that the model writes for an answer.
        max_images: maximum number of images in an answer.
        sampling: token sampling parameters; its seeds are those of the answers.
        config: settings of the images.
    """

    model: Any
    device: torch.device
    _: KW_ONLY
    max_new_tokens: int
    max_images: int
    sampling: Sampling
    config: GenerationConfig

    def __post_init__(self) -> None:
        self.panel = self.model.understanding
        self.image_tokens = image_tokens(self.panel.vlm)
        if self.max_images and self.config.image_guidance_scale is not None:
            check_edit(self.model, self.config)

    @torch.no_grad()
    def __call__(
        self, answers: Sequence[OpenAnswer], on_part: OnPart | None = None
    ) -> list[ChatOutput]:
        """Write the answers to their ends; an exception of `on_part` ends the call."""
        tell = on_part or (lambda number, part: None)
        numbers = list(range(len(answers)))
        while numbers := [n for n in numbers if self._limit(answers[n]) > 0]:
            some = [answers[n] for n in numbers]
            rows = self._write(some, partial(_tell_of, tell, numbers))
            for answer, row in zip(some, rows, strict=True):
                self._take(answer, row)
            numbers = [n for n in numbers if answers[n].finished is None]
            if numbers:
                self._draw([answers[n] for n in numbers])
                for n in numbers:
                    tell(n, answers[n].content[-1])
        return [answer.output() for answer in answers]

    def _limit(self, answer: OpenAnswer) -> int:
        """Number of tokens that may still be written."""
        room = self.panel.chat_tokens - len(answer.ids)
        return min(self.max_new_tokens - answer.written, room)

    def _write(self, answers: list[OpenAnswer], on_text: Callable) -> list[DetokenizerState]:
        sampling = Sampling(
            self.sampling.temperature,
            self.sampling.top_p,
            [answer.seed + ROUND * answer.images for answer in answers],
        )
        return write(
            self.panel.vlm,
            [answer.ids for answer in answers],
            joined(answers),
            limits=[self._limit(answer) for answer in answers],
            device=self.device,
            sampling=sampling,
            forbidden=[
                [] if answer.images < self.max_images else self.image_tokens for answer in answers
            ],
            on_text=on_text,
        )

    def _take(self, answer: OpenAnswer, row: DetokenizerState) -> None:
        answer.ids += row.tokens
        answer.written += len(row.tokens)
        if text := row.text():
            answer.content.append(text)
        if row.finished == "image":
            answer.ids += self.image_tokens
            answer.written += 1
        else:
            answer.finished = row.finished

    def _draw(self, answers: list[OpenAnswer]) -> None:
        """Make the next image of each answer, and show it to the model."""
        model, seeds = self.model, [answer.seed + answer.images for answer in answers]
        features = model.generation.sample(
            condition_of_rows(model, [answer.ids for answer in answers], joined(answers)),
            seeds,
            negative_condition=negative_condition(model, self.config),
            source=self._source([answer.last_image for answer in answers]),
            **self.config.of_features,
        )
        made = to_images(model.decode(features, seeds, **self.config.of_decoder))
        shown, tokens = split_shown(self.panel, made)
        for answer, drawn, inputs, number in zip(answers, made, shown, tokens, strict=True):
            answer.ids += encode(self.panel.vlm.tokenizer, image(number))
            answer.shown.append(inputs)
            answer.content.append(drawn)
            answer.last_image = drawn
            answer.images += 1

    def _source(self, images: list[Image.Image | None]) -> Source | None:
        """Features of the last image of each conversation, for a generator that sees them."""
        if not self.model.generation.takes_source:
            return None
        encoder = self.model.target_encoder
        present = torch.tensor([each is not None for each in images], device=self.device)
        features = torch.zeros(len(images), *encoder.feature_shape, device=self.device)
        given = [square(each, self.model.image_size) for each in images if each is not None]
        if given:
            features[present] = source_of_images(self.model, torch.stack(given)).features
        return Source(features, present)


def _tell_of(tell: OnPart, numbers: list[int], place: int, part: str) -> None:
    """Tell a part of the answer at a place of `numbers`."""
    tell(numbers[place], part)


def joined(answers: Sequence[OpenAnswer]) -> tuple[Tensor, Tensor] | None:
    """Patches and grids of the images of all conversations; None without any."""
    shown = [each for answer in answers for each in answer.shown]
    if not shown:
        return None
    patches, grids = zip(*shown, strict=True)
    return torch.cat(patches), torch.cat(grids)


def split_shown(
    panel: Any, images: list[Image.Image]
) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
    """Patches and grid of each image, and its number of tokens; see `UnderstandingModule.show`."""
    (patches, grids), tokens = panel.show(images)
    parts = patches.split(grids.prod(1).tolist())
    return list(zip(parts, grids.split(1), strict=True)), tokens


def most_images(model: Any, wanted: int | None = None) -> int:
    """Maximum number of images in an answer: as wanted, by default the model's own.

    Raises:
        UserError: images are wanted of a model that makes none.
    """
    number = model.understanding.answer_images if wanted is None else wanted
    if not number:
        return 0
    lacking = model.generation is None and "it has no generation panel"
    lacking = lacking or model.lacks("generation")
    if not lacking and model.generation.objective.target != "vae":
        lacking = model.lacks("decoding")
    if not lacking and model.generation.takes_source and not model.target_encoder.is_built:
        lacking = "its generator takes source images, and there are no weights of its image encoder"
    if lacking and wanted:
        raise UserError(f"this model answers without images, as {lacking}; leave out max_images.")
    return 0 if lacking else number
