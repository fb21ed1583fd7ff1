"""Jobs of requests for the pipeline, and their execution in batches."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from triptych.inference.chat_messages import Message
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.pipeline import Progress, UnifiedPipeline
from triptych.serving.http.batching import Call


@dataclass(frozen=True)
class ChatSettings:
    """Chat settings. Named like the arguments of `UnifiedPipeline.chat`."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass
class GenerationJob:
    """Images, each from its prompt, its seed and, if there are any, its image."""

    prompts: list[str]
    seeds: list[int]
    images: list[Image.Image] = field(default_factory=list)
    settings: GenerationConfig = GenerationConfig()
    partial: int = 0
    """Number of unfinished images that the client requests of each."""

    @property
    def size(self) -> int:
        return len(self.prompts)

    @property
    def kind(self) -> Hashable:
        return "edit" if self.images else "generate", self.settings


@dataclass
class ChatJob:
    """An answer to a conversation."""

    messages: list[Message]
    seed: int | None = None
    """Random seed of the sampling; None draws it."""
    settings: ChatSettings = ChatSettings()
    size: int = 1

    @property
    def kind(self) -> Hashable:
        return "chat", self.settings


@dataclass
class Partial:
    """An unfinished image."""

    image: Image.Image
    number: int
    """Index of the image in its request."""
    index: int
    """Number of earlier unfinished images of this image."""


def run_batch(pipeline: UnifiedPipeline, max_batch: int, call: Call) -> Sequence[Any]:
    """Results of a call's works, which are of one kind: lists of images, or answers."""
    if isinstance(call.works[0], ChatJob):
        return _answers(pipeline, call)
    return _images(pipeline, max_batch, call)


def _answers(pipeline: UnifiedPipeline, call: Call) -> Sequence[Any]:
    def on_text(number: int, piece: str) -> None:
        call.proceed()
        call.piece(number, piece)

    call.proceed()
    works: list[ChatJob] = call.works
    return pipeline.chat_batch(
        [work.messages for work in works],
        **asdict(works[0].settings),
        seed=[secrets.randbits(32) if work.seed is None else work.seed for work in works],
        on_text=on_text,
    )


def _images(pipeline: UnifiedPipeline, max_batch: int, call: Call) -> Sequence[list[Image.Image]]:
    works: list[GenerationJob] = call.works
    owners = [(job, n) for job, work in enumerate(works) for n in range(work.size)]

    def callback(progress: Progress) -> None:
        call.proceed()
        shown = {
            place: index
            for place in progress.images
            if (index := _partial_index(works[owners[place][0]].partial, progress)) is not None
        }
        if shown:
            seen = dict(zip(progress.images, progress.preview(), strict=True))
            for place, index in shown.items():
                job, number = owners[place]
                call.piece(job, Partial(seen[place], number, index))

    call.proceed()
    prompts = [prompt for work in works for prompt in work.prompts]
    options = {
        "generation_config": works[0].settings,
        "seed": [seed for work in works for seed in work.seeds],
        "batch_size": max_batch,
        "callback_on_step_end": callback,
    }
    if works[0].images:
        images = [image for work in works for image in work.images]
        made = iter(pipeline.edit(images, prompt=prompts, **options).images)
    else:
        made = iter(pipeline(prompts, **options).images)
    return [[next(made) for _ in work.prompts] for work in works]


def _partial_index(wanted: int, progress: Progress) -> int | None:
    """Index among `wanted` unfinished images of this step: they are evenly spread over the
    decoder's steps, which are the cheapest to look at."""
    if progress.stage != "pixels":
        return None
    steps = [progress.steps * (n + 1) // (wanted + 1) for n in range(wanted)]
    return steps.index(progress.step) if progress.step in steps else None
