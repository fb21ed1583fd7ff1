"""Jobs of requests for the pipeline, and their execution in batches."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from triptych.inference.chat_messages import Message
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.pipeline import Progress, UnifiedPipeline
from triptych.serving.http.batching import JobBatch


@dataclass(frozen=True)
class ChatSettings:
    """Chat settings, named as the arguments of `UnifiedPipeline.chat`."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    max_images: int | None = None
    generation_config: GenerationConfig = GenerationConfig()


@dataclass
class GenerationJob:
    """Generation of images from prompts and seeds, or editing of as many images."""

    prompts: list[str]
    seeds: list[int]
    images: list[Image.Image] = field(default_factory=list)
    settings: GenerationConfig = GenerationConfig()
    num_partial: int = 0
    """Number of requested partial images of each image."""

    @property
    def num_images(self) -> int:
        """Number of images of the response."""
        return len(self.prompts)

    @property
    def size(self) -> int:
        return self.num_images * self.settings.candidates

    @property
    def batch_key(self) -> Hashable:
        return "edit" if self.images else "generate", self.settings


@dataclass
class ChatJob:
    """Generation of the answer to a conversation."""

    messages: list[Message]
    seed: int | None = None
    """Seed of the sampling; None draws a random one."""
    settings: ChatSettings = ChatSettings()
    size: int = 1

    @property
    def batch_key(self) -> Hashable:
        return "chat", self.settings


@dataclass
class PartialImage:
    """Preview of an unfinished image."""

    image: Image.Image
    number: int
    """Index of the image in its request."""
    index: int
    """Index of the preview of this image."""


def run_batch(pipeline: UnifiedPipeline, max_batch: int, batch: JobBatch) -> Sequence[Any]:
    """Run jobs of equal batch keys; return a list of images or an answer for each job."""
    if isinstance(batch.jobs[0], ChatJob):
        return _generate_answers(pipeline, batch)
    return _generate_images(pipeline, max_batch, batch)


def _generate_answers(pipeline: UnifiedPipeline, batch: JobBatch) -> Sequence[Any]:
    def on_part(number: int, part: str | Image.Image) -> None:
        batch.check_abandoned()
        batch.report_partial(number, part)

    batch.check_abandoned()
    jobs: list[ChatJob] = batch.jobs
    return pipeline.chat_batch(
        [job.messages for job in jobs],
        **vars(jobs[0].settings),
        seed=[secrets.randbits(32) if job.seed is None else job.seed for job in jobs],
        on_part=on_part,
    )


def _generate_images(
    pipeline: UnifiedPipeline, max_batch: int, batch: JobBatch
) -> Sequence[list[Image.Image]]:
    jobs: list[GenerationJob] = batch.jobs
    owners = [(index, n) for index, job in enumerate(jobs) for n in range(job.num_images)]
    reported: set[tuple[int, int]] = set()  # with candidates, an image comes to a step repeatedly

    def callback(progress: Progress) -> None:
        batch.check_abandoned()
        requested = {
            place: index
            for place in progress.images
            if (index := _partial_index(jobs[owners[place][0]].num_partial, progress)) is not None
            and (place, index) not in reported
        }
        reported.update(requested.items())
        if requested:
            previews = dict(zip(progress.images, progress.preview(), strict=True))
            for place, index in requested.items():
                job, number = owners[place]
                batch.report_partial(job, PartialImage(previews[place], number, index))

    batch.check_abandoned()
    prompts = [prompt for job in jobs for prompt in job.prompts]
    options = {
        "generation_config": jobs[0].settings,
        "seed": [seed for job in jobs for seed in job.seeds],
        "batch_size": max_batch,
        "callback_on_step_end": callback,
    }
    if jobs[0].images:
        sources = [image for job in jobs for image in job.images]
        images = iter(pipeline.edit(sources, prompt=prompts, **options).images)
    else:
        images = iter(pipeline(prompts, **options).images)
    return [[next(images) for _ in job.prompts] for job in jobs]


def _partial_index(count: int, progress: Progress) -> int | None:
    """Return the index of the partial image of this step, if any. They are evenly spread over the
    decoder's steps, whose previews are the cheapest."""
    if progress.stage != "pixels":
        return None
    steps = [progress.steps * (n + 1) // (count + 1) for n in range(count)]
    return steps.index(progress.step) if progress.step in steps else None
