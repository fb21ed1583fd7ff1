"""Collator: joins the prompts and images of samples to a `Batch`; bad samples are replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import cycle

import torch
from torch import Tensor

from triptych.data_modules.batching.tasks import (
    IMAGE_PROMPT_TASKS,
    SOURCE_TASKS,
    Prompt,
    TaskDataset,
)
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.base import BadSample, ImageRole, bad_sample_on_error
from triptych.interfaces import (
    IMAGE_GENERATION,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    PREFERRED_GENERATION,
    REWARDED_GENERATION,
    TURN,
    Batch,
    Preprocessing,
    RewardSample,
    label_indices,
)
from triptych.prompts import IGNORED, IMAGE_PAD, PAD, pad, shared_tokens, token_id
from triptych.utils.errors import UserError
from triptych.utils.images import stack_images


@dataclass
class Target:
    """An image to generate."""

    image: Tensor | None = None
    """uint8 [3,S,S]"""
    features: Tensor | None = None
    """[C,h,w], its cached features."""
    source: Tensor | None = None
    """uint8 [3,S,S], the image that an edit changes, for a model whose generator sees it."""


@dataclass
class Example:
    """One sample as model input."""

    key: str
    prompt: Prompt
    prompt_images: list[Tensor] = field(default_factory=list)
    """uint8 [3,s,s] each, the images in the prompt."""
    targets: list[Target] = field(default_factory=list)
    """The images to generate: one, those of a conversation, or a better and a worse one."""


@dataclass
class Collator:
    """Makes batches of data sets of one objective; picklable, for loader workers.

    Args:
        datasets: open data sets with their tasks; a batch may hold samples of all of them.
        processor: the model's tokenizer, limits and image sizes.
        seed: random seed of the draws of a task.
        decoder: decoder from encoded images to squares.
        replace_bad: whether a good sample of the batch replaces each bad one, which keeps the batch
            size equal on all ranks; otherwise the batch is smaller, and no sample counts twice.

    Raises:
        UserError: the tasks have different objectives.
    """

    datasets: list[TaskDataset]
    processor: Preprocessing
    seed: int = 0
    _: KW_ONLY
    decoder: Decoder = field(default_factory=Decoder)
    replace_bad: bool = True

    def __post_init__(self) -> None:
        tasks = [dataset.task for dataset in self.datasets]
        if len({dataset.objective for dataset in self.datasets}) != 1:
            raise UserError(
                f"tasks {tasks} have different losses and so cannot share a batch; "
                "build a batch for each objective."
            )
        if INTERLEAVED_IMAGES in tasks and self.processor.tokenizer is None:
            raise UserError(
                f"the task {INTERLEAVED_IMAGES} makes images in conversations, which this stage "
                "does not read; leave it out of the data."
            )

    @property
    def objective(self) -> str:
        """`Batch.objective` of every batch."""
        return self.datasets[0].objective

    def __call__(
        self, step: int, places: Sequence[tuple[int, int]], samples: Sequence[int]
    ) -> Batch:
        """Make one batch.

        Bad samples are listed in `Batch.dropped_samples`. With `replace_bad`, a good sample takes
        the place of each, under the global sample number of the bad one: the copy gets other noise
        than the original.

        Args:
            step: number of the batch.
            places: (number of the data set, number of the sample in its source) of each sample.
            samples: global sample number of each sample.

        Raises:
            UserError: no sample of the batch is usable.
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
            replacements = cycle(good)
            good = [example if example is not None else next(replacements) for example in examples]
        else:
            rows = zip(examples, numbers, strict=True)
            numbers = [number for example, number in rows if example is not None]
        return self._batch(step, good, torch.tensor(numbers, dtype=torch.long), skipped)

    def _example(self, dataset: TaskDataset, number: int, sample: int) -> Example:
        processor = self.processor
        prompt = dataset.prompt(number, sample, processor, self.seed)
        if dataset.task in (INTERLEAVED, INTERLEAVED_IMAGES):
            return self._conversation(dataset, number, prompt)
        if self.objective == PREFERRED_GENERATION:
            return self._pair(dataset, number, prompt)
        features: Tensor | None = None
        target_role: ImageRole | None = None
        if self.objective == IMAGE_GENERATION:
            features = dataset.features and dataset.features.get(number)
            target_role = "image" if features is None or processor.images_too else None
        sizes: dict[ImageRole, list[int]] = {}  # of each image, which is decoded once
        if prompt.image_role:
            sizes.setdefault(prompt.image_role, []).append(processor.understanding_size)
        if target_role:
            sizes.setdefault(target_role, []).append(processor.image_size)
        is_edit = prompt.image_role == "source" and processor.takes_source
        if is_edit:  # not a reconstruction: its source would be its target
            sizes["source"].append(processor.image_size)
        squares = {role: self._squares(dataset, number, role, sizes[role]) for role in sizes}
        if features is None and dataset.has_all_features:  # the encoder may not be loaded
            raise without_features(dataset, number)
        shown = [squares[prompt.image_role][0]] if prompt.image_role else []
        targets = []
        if self.objective == IMAGE_GENERATION:
            image = squares[target_role][-1] if target_role else None
            targets = [Target(image, features, squares["source"][-1] if is_edit else None)]
        return Example(dataset.source.key(number), prompt, shown, targets)

    def _conversation(self, dataset: TaskDataset, number: int, prompt: Prompt) -> Example:
        """Make the example of a conversation, whose images are decoded once each."""
        source, processor = dataset.source, self.processor
        sizes: dict[str, dict[str, int]] = {}  # of each image, by use
        for name in prompt.image_names:
            sizes.setdefault(name, {})["shown"] = processor.understanding_size
        features = {
            target.name: dataset.features and dataset.features.get(number, target.name)
            for target in prompt.targets
        }
        for target in prompt.targets:
            if features[target.name] is None or processor.images_too:
                sizes.setdefault(target.name, {})["made"] = processor.image_size
            if target.source and processor.takes_source:
                sizes.setdefault(target.source, {})["made"] = processor.image_size
        squares: dict[str, dict[str, Tensor]] = {}
        for name, uses in sizes.items():
            data = source.named_image_bytes(number, name)
            with bad_sample_on_error(source.key(number), "image of a message"):
                decoded = self.decoder(data, *uses.values())
            squares[name] = dict(zip(uses, decoded, strict=True))
        if dataset.has_all_features and None in features.values():
            raise without_features(dataset, number)
        shown = [squares[name]["shown"] for name in prompt.image_names]
        targets = [
            Target(
                squares.get(each.name, {}).get("made"),
                features[each.name],
                source=squares[each.source]["made"]
                if each.source and processor.takes_source
                else None,
            )
            for each in prompt.targets
        ]
        return Example(source.key(number), prompt, shown, targets)

    def _pair(self, dataset: TaskDataset, number: int, prompt: Prompt) -> Example:
        """Make the example of two images, of which the first is preferred."""
        source, size = dataset.source, self.processor.image_size
        (chosen,) = self._squares(dataset, number, "image", [size])
        data = source.named_image_bytes(number, prompt.rejected)
        with bad_sample_on_error(source.key(number), "rejected image"):
            (rejected,) = self.decoder(data, size)
        return Example(source.key(number), prompt, [], [Target(chosen), Target(rejected)])

    def _squares(
        self, dataset: TaskDataset, number: int, role: ImageRole, sizes: list[int]
    ) -> list[Tensor]:
        data = dataset.source.image_bytes(number, role)
        with bad_sample_on_error(dataset.source.key(number), role):
            return self.decoder(data, *sizes)

    def _batch(
        self, step: int, examples: list[Example], samples: Tensor, skipped: list[tuple[str, str]]
    ) -> Batch:
        processor = self.processor
        prompts = [example.prompt for example in examples]
        if processor.tokenizer is None:
            ids = mask = torch.zeros((len(examples), 0), dtype=torch.long)
        else:
            ids, mask = pad([prompt.ids for prompt in prompts], token_id(processor.tokenizer, PAD))
        images = [image for each in examples for image in each.prompt_images]
        patches, grids = processor.image_inputs(stack_images(images)) if images else (None, None)
        positions = None
        if images and processor.position_ids is not None:
            positions = processor.position_ids(ids, mask, grids)
        batch = Batch(
            self.objective,
            [example.key for example in examples],
            step,
            samples,
            ids,
            mask,
            understanding_pixels=patches,
            image_grid_thw=grids,
            position_ids=positions,
            may_show=any(dataset.task in IMAGE_PROMPT_TASKS for dataset in self.datasets),
            dropped_samples=skipped,
        )
        if self.objective == IMAGE_GENERATION:
            if any(dataset.task == INTERLEAVED_IMAGES for dataset in self.datasets):
                samples = add_query_groups(batch, examples)
            batch.draws = {each.stream: each(processor.seed, samples) for each in processor.draws}
            if processor.tokenizer is not None:
                placeholder = token_id(processor.tokenizer, IMAGE_PAD)
                batch.num_shared_prefix_tokens = shared_tokens(
                    [prompt.ids for prompt in prompts], placeholder
                )
            targets = [target for example in examples for target in example.targets]
            batch.target_pixels, _ = stack_optional(
                [target.image for target in targets], stack_images
            )
            batch.target_features, batch.has_features = stack_optional(
                [target.features for target in targets]
            )
            self._add_sources(batch, [target.source for target in targets])
        elif self.objective == PREFERRED_GENERATION:
            pairs = [example.targets for example in examples]
            batch.target_pixels = stack_images([chosen.image for chosen, _ in pairs])
            batch.rejected_pixels = stack_images([rejected.image for _, rejected in pairs])
        elif self.objective == REWARDED_GENERATION:
            batch.reward_samples = [
                RewardSample(each.prompt.caption, each.key, each.prompt.facts) for each in examples
            ]
        else:
            batch.labels = pad([prompt.labels for prompt in prompts], IGNORED)[0]
            batch.label_indices = label_indices(batch.labels)
        return batch

    def _add_sources(self, batch: Batch, sources: list[Tensor | None]) -> None:
        given = [source for source in sources if source is not None]
        if given:
            batch.source_pixels = stack_images(given)
            batch.has_source = torch.tensor([source is not None for source in sources])
        edits = any(dataset.task in SOURCE_TASKS for dataset in self.datasets)
        batch.may_have_source = self.processor.takes_source and edits


def without_features(dataset: TaskDataset, number: int) -> BadSample:
    """Error about a sample of a shard that has cached features, but none of it."""
    return BadSample(
        dataset.source.key(number),
        "no features in the cache of its shard",
        "its key comes twice, or its image could not be read when they were computed; "
        "--data.features=none computes them in training",
    )


def add_query_groups(batch: Batch, examples: list[Example]) -> Tensor:
    """Make each image to generate a row of the batch; return their `Batch.sample_ids`."""
    places = [
        [target.place for target in example.prompt.targets] or [len(example.prompt.ids) - 1]
        for example in examples
    ]
    groups = max(map(len, places))
    rows = [(prompt, turn) for prompt, some in enumerate(places) for turn in range(len(some))]
    prompts, turns = torch.tensor(rows, dtype=torch.long).T
    batch.query_places, _ = pad(places, 0)
    batch.query_rows = prompts * groups + turns
    batch.keys = [batch.keys[prompt] for prompt, _ in rows]
    batch.sample_ids = batch.sample_ids[prompts] + turns * TURN
    return batch.sample_ids


def stack_optional(
    rows: list[Tensor | None], join: Callable[[list[Tensor]], Tensor] = torch.stack
) -> tuple[Tensor | None, Tensor | None]:
    """Stack rows of one shape with zeros for None; return the batch and the mask of rows, [B].

    Both are None without any row; the mask is None if no row is missing.
    """
    present = [row for row in rows if row is not None]
    if not present:
        return None, None
    if len(present) == len(rows):
        return join(rows), None
    empty = torch.zeros_like(present[0])
    batch = join([empty if row is None else row for row in rows])
    return batch, torch.tensor([row is not None for row in rows])
