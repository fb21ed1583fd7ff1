"""From sample numbers to a `Batch`: prompts and images of each sample, bad ones replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor

from triptych.data_modules.batching.tasks import SHOWING, Prompt, TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.base import BadSample, ImageRole
from triptych.interfaces import IMAGE_GENERATION, Batch, Preprocessing
from triptych.prompts import IGNORED, IMAGE_PAD, PAD, pad, shared_tokens, token_id
from triptych.utils.errors import ImageError, UserError
from triptych.utils.images import stack_images


@dataclass
class Example:
    """One sample as the model takes it."""

    key: str
    prompt: Prompt
    shown: Tensor | None = None
    """uint8 [3,s,s], the image in the prompt."""
    target: Tensor | None = None
    """uint8 [3,S,S], the image to make."""
    features: Tensor | None = None
    """Cached features [C,h,w] of that image, if they were computed before."""


@dataclass
class Collator:
    """Builds batches of tasks of one objective from their sources; picklable, for loader workers.

    Args:
        datasets: the sources, open, each with its task; a batch may hold samples of all of them.
        processor: the model's tokenizer, limits and image sizes.
        seed: random seed of the choices that a task makes.
        decode: decoder from encoded images to squares.
        replace_bad: whether a good sample of a batch replaces one that cannot be used, which
            keeps batches equal on all ranks; else the batch is smaller, and no sample counts twice.

    Raises:
        UserError: the tasks are of two objectives, or the model takes no images in its prompts.
    """

    datasets: list[TaskDataset]
    processor: Preprocessing
    seed: int = 0
    decode: Decoder = field(default_factory=Decoder)
    replace_bad: bool = True

    def __post_init__(self) -> None:
        tasks = [dataset.task for dataset in self.datasets]
        if len({dataset.objective for dataset in self.datasets}) != 1:
            raise UserError(
                f"tasks {tasks} have different losses and so cannot share a batch; "
                "build a batch for each objective."
            )

    @property
    def objective(self) -> str:
        """`Batch.objective` of every batch."""
        return self.datasets[0].objective

    def __call__(
        self, step: int, places: Sequence[tuple[int, int]], samples: Sequence[int]
    ) -> Batch:
        """Batch `step` of the samples at `places`, whose global sample numbers are `samples`.

        Args:
            places: (number of the dataset, number of the sample in its source).

        A sample that cannot be used is named in `Batch.skipped`. With `replace_bad`, a good one of
        the batch stands in for it, under the global sample number of the one that it replaces: the
        copy meets another noise than the original.

        Raises:
            UserError: no sample of the batch can be used.
        """
        examples: list[Example | None] = []
        skipped = []
        for (dataset, number), sample in zip(places, samples, strict=True):
            try:
                examples.append(self._example(self.datasets[dataset], number, sample))
            except BadSample as bad:
                examples.append(None)
                skipped.append((bad.key, bad.reason))
                last = bad
        good = [example for example in examples if example is not None]
        if not good:
            raise UserError(
                f"none of the {len(examples)} samples of batch {step} can be used; the last of "
                f"them: {last}."
            )
        numbers = list(samples)
        if self.replace_bad:
            stand_ins = cycle(good)
            good = [example if example is not None else next(stand_ins) for example in examples]
        else:
            rows = zip(examples, numbers, strict=True)
            numbers = [number for example, number in rows if example is not None]
        return self._batch(step, good, torch.tensor(numbers, dtype=torch.long), skipped)

    def _example(self, dataset: TaskDataset, number: int, sample: int) -> Example:
        processor = self.processor
        prompt = dataset.prompt(number, sample, processor, self.seed)
        features: Tensor | None = None
        target: ImageRole | None = None
        if self.objective == IMAGE_GENERATION:
            features = dataset.features and dataset.features.get(number)
            target = "image" if features is None or processor.images_too else None
        sizes: dict[ImageRole, list[int]] = {}  # role -> sizes: each image is decoded once
        if prompt.shown:
            sizes.setdefault(prompt.shown, []).append(processor.understanding_size)
        if target:
            sizes.setdefault(target, []).append(processor.image_size)
        squares = {role: self._squares(dataset, number, role, sizes[role]) for role in sizes}
        return Example(
            dataset.source.key(number),
            prompt,
            squares[prompt.shown][0] if prompt.shown else None,
            squares[target][-1] if target else None,
            features,
        )

    def _squares(
        self, dataset: TaskDataset, number: int, role: ImageRole, sizes: list[int]
    ) -> list[Tensor]:
        data = dataset.source.image_bytes(number, role)
        try:
            return self.decode(data, *sizes)
        except ImageError as error:
            key = dataset.source.key(number)
            raise BadSample(key, f"{role} {error.reason}", error.detail) from error

    def _batch(
        self, step: int, examples: list[Example], samples: Tensor, skipped: list[tuple[str, str]]
    ) -> Batch:
        processor = self.processor
        prompts = [example.prompt for example in examples]
        if processor.tokenizer is None:
            ids = mask = torch.zeros((len(examples), 0), dtype=torch.long)
        else:
            ids, mask = pad([prompt.ids for prompt in prompts], token_id(processor.tokenizer, PAD))
        shown = [example.shown for example in examples if example.shown is not None]
        patches, grids = processor.image_inputs(stack_images(shown)) if shown else (None, None)
        batch = Batch(
            self.objective,
            [example.key for example in examples],
            step,
            samples,
            ids,
            mask,
            understanding_pixels=patches,
            image_grid_thw=grids,
            may_show=any(dataset.task in SHOWING for dataset in self.datasets),
            skipped=skipped,
        )
        if self.objective == IMAGE_GENERATION:
            if processor.tokenizer is not None:
                placeholder = token_id(processor.tokenizer, IMAGE_PAD)
                batch.shared = shared_tokens([prompt.ids for prompt in prompts], placeholder)
            batch.target_pixels, _ = stack([example.target for example in examples], stack_images)
            batch.target_features, batch.has_features = stack(
                [example.features for example in examples]
            )
        else:
            batch.labels = pad([prompt.labels for prompt in prompts], IGNORED)[0]
        return batch


def stack(
    rows: list[Tensor | None], join: Callable[[list[Tensor]], Tensor] = torch.stack
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of one shape as a batch, zeros in the place of None, and which of them are there, [B].

    The batch is None if no row is there; which are is None if all are.
    """
    there = [row for row in rows if row is not None]
    if not there:
        return None, None
    if len(there) == len(rows):
        return join(rows), None
    empty = torch.zeros_like(there[0])
    batch = join([empty if row is None else row for row in rows])
    return batch, torch.tensor([row is not None for row in rows])
