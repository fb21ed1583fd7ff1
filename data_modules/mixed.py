"""The DataModules: data sets in, batches out, at a position that is a function of the step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import BadSampleCounter, check_texts
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.decode import Decoder, ImageBackend
from triptych.data_modules.features.cache import AUTO, open_feature_caches
from triptych.data_modules.previews import Need, Preview, previews
from triptych.data_modules.sampling.batch_sampler import ORDER_VERSION, GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import (
    EvaluationDataset,
    StepDataset,
    StepLoader,
    make_step_sampler,
    require_step_based_run,
    step_loader,
)
from triptych.data_modules.sources.base import DataSource
from triptych.interfaces import (
    IMAGE_GENERATION,
    OBJECTIVE_OF_TASK,
    TEXT_TO_IMAGE,
    TEXT_TO_TEXT,
    Preprocessing,
    batches_in,
)
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class DatasetConfig:
    """One data set of a mixture.

    Args:
        source: the samples: any `DataSource`, by class_path.
        task: task of the samples: "text_to_image", "image_to_image", "image_to_text" or
            "text_to_text".
        weight: share of the samples of its objective, relative to the other data sets; null in all
            of them is in proportion to their numbers of samples. 0 excludes it.
        text_only_ratio: share of image_to_text samples that talk about the caption, without image.
        conversation_key: key of the [question, answer] turns in the metadata of a sample; an
            image without it is described by its caption.
        max_turns: take so many turns of a conversation, others each time; null takes all, in order.
        features: a folder that `triptych data features` made of these samples; "auto" takes
            features/ beside the shards if it is there, "none" encodes every image anew.
    """

    source: DataSource
    task: str = TEXT_TO_IMAGE
    weight: float | None = None
    text_only_ratio: float = 0.0
    conversation_key: str = "conversation"
    max_turns: int | None = None
    features: str = AUTO

    def dataset(self, name: str) -> TaskDataset:
        """The samples as the task reads them."""
        return TaskDataset(
            self.source,
            self.task,
            name,
            self.text_only_ratio,
            self.conversation_key,
            self.max_turns,
        )


class MixedDataModule(LightningDataModule):
    """Data sets of any formats and tasks, mixed by weight.

    Tasks that make images have one objective, tasks that write text the other. The data sets of an
    objective share its batches; where there are both, every step takes one batch of each: joint
    training.

    Every sample comes once an epoch of its data set, whatever buckets, ranks and workers there are,
    and no step takes a sample twice, unless it takes more of a data set than that has; the
    log says how often each was gone through (`data/epochs/NAME`). A resumed run continues with the
    next sample, also on other ranks and workers, as long as the samples of a step are as many.

    Args:
        datasets: training data sets, by name.
        val_datasets: validation data sets; null validates on the first training samples.
        batch_size: samples per batch and rank, of each objective; a step takes as many batches as
            there are ranks, times trainer.accumulate_grad_batches.
        num_val_samples: how many samples to validate on, of each objective.
        num_workers: loader processes.
        seed: of the order.
        length_bucket_batches: sort captions by length among so many global batches, so that batches
            are hardly padded; 1 leaves the order as it is, and so do data sets that do not know the
            lengths of their captions.
        max_bad_fraction: end the run when more of the samples than this cannot be used.
        image_backend: library that makes images squares, see `Decoder`: "torchvision", or "pillow"
            for the published transform to the bit, which drops alpha channels.
        max_pixels: pixel limit; a larger image is a bad sample, and is not decoded.
    """

    def __init__(
        self,
        datasets: dict[str, DatasetConfig],
        val_datasets: dict[str, DatasetConfig] | None = None,
        batch_size: int = 16,
        num_val_samples: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        length_bucket_batches: int = 64,
        max_bad_fraction: float = 0.01,
        image_backend: ImageBackend = "torchvision",
        max_pixels: int = Decoder.max_pixels,
    ) -> None:
        super().__init__()
        if not datasets:
            raise UserError("data.datasets is empty; name at least one data set.")
        if batch_size < 1 or length_bucket_batches < 1:
            raise UserError("data.batch_size and data.length_bucket_batches must be 1 or more.")
        self.datasets, self.val_datasets = datasets, val_datasets or datasets
        for name, each in [*self.datasets.items(), *self.val_datasets.items()]:
            if each.task not in OBJECTIVE_OF_TASK:
                raise UserError(
                    f"data set {name!r}: the task {each.task!r} is unknown; choose one of "
                    f"{', '.join(OBJECTIVE_OF_TASK)}."
                )
        self.batch_size, self.num_val_samples = batch_size, num_val_samples
        self.num_workers, self.seed = num_workers, seed
        self.length_bucket_batches, self.max_bad_fraction = length_bucket_batches, max_bad_fraction
        self.decoder = Decoder(image_backend, max_pixels)
        self.processor: Preprocessing | None = None
        self.task_datasets: dict[str, list[TaskDataset]] = {}
        """Family -> its data sets for training; empty before `setup`."""
        self.val_task_datasets: dict[str, list[TaskDataset]] = {}
        self.mixtures: dict[str, Mixture] = {}
        self.bad_samples = BadSampleCounter(max_bad_fraction)
        self._digest: int | None = None

    def connect(self, processor: Preprocessing) -> None:
        """Take the model's tokenizer and sizes; done by `setup` under a Trainer."""
        self.processor = processor

    def preview(self, objective: str, number: int, *needs: Need) -> list[Preview]:
        """Validation samples of an objective, see `previews`; none if none has `needs`."""
        task_datasets = self.val_task_datasets.get(objective, [])
        return previews(task_datasets, self.processor, number, set(needs), self.decoder)

    def require(self, trainer: Trainer) -> None:
        """Refuse settings of a fit that this data cannot follow; see `require_step_based_run`."""
        require_step_based_run(trainer)

    # Lightning hooks ----------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Open all data in one process first: what it builds, such as an index, is built once."""
        for ingredient in [*self.datasets.values(), *self.val_datasets.values()]:
            ingredient.source.open()

    def setup(self, stage: str) -> None:
        if self.processor is None:
            self.connect(self.trainer.lightning_module.preprocessing())
        if self.task_datasets:
            return
        if hint := self.decoder.hint:
            rank_zero_info(hint)
        self.val_task_datasets = group_by_objective(self.val_datasets)
        task_datasets = group_by_objective(self.datasets)
        self._take_features(task_datasets)
        self.mixtures = {objective: Mixture(self.weights(objective)) for objective in task_datasets}
        for found in task_datasets.values():
            for dataset in found:
                check_images(dataset)
            check_texts(found, self.processor, self.max_bad_fraction, self.seed)
        self.task_datasets = task_datasets

    def train_dataloader(self) -> AccumulationLoader:
        trainer = self.trainer
        accumulate, steps = trainer.accumulate_grad_batches, make_step_sampler(trainer)
        rank, world = trainer.global_rank, trainer.world_size

        def loader(objective: str) -> StepLoader:
            if (samples := sum(len(each.source) for each in self.task_datasets[objective])) < world:
                raise UserError(
                    f"there are {world} ranks for {samples} samples of {objective}, so some would "
                    "train on the same; lower --trainer.devices or add data."
                )
            build = Collator(self.task_datasets[objective], self.processor, self.seed, self.decoder)
            schedule = self.schedule(objective)
            for name, (samples, taken) in schedule.oversampled().items():
                rank_zero_info(
                    f"data set {name!r} has {samples} samples, and a step takes up to {taken} of "
                    "it: its batches hold samples more than once."
                )
            dataset = StepDataset(build, schedule, rank, world, accumulate)
            return step_loader(dataset, steps, self.num_workers)

        loaders = {objective: loader(objective) for objective in self.task_datasets}
        return AccumulationLoader(unwrap_single(loaders), trainer)

    def val_dataloader(self):
        return self._in_order(self.processor)

    def test_dataloader(self):
        return self.val_dataloader()

    def predict_dataloader(self):
        """The validation captions, in the prompt template of inference."""
        return self._in_order(replace(self.processor, training_template=self.processor.template))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        for each in batches_in(batch):
            self.bad_samples.count(each)
        return batch

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.task_datasets and self.trainer is not None:
            done = self.trainer.global_step
            for objective in self.task_datasets:
                epochs = self.schedule(objective).epochs(done)
                seen = ", ".join(f"{name} {number:.2f}" for name, number in epochs.items())
                rank_zero_info(f"epochs gone through after {done} steps of {objective}: {seen}")
        self.bad_samples.report()

    def state_dict(self) -> dict[str, int]:
        return {"version": ORDER_VERSION, "order": self._order_digest()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Check that a run can resume: a position is sufficient if the order is still the same.

        Raises:
            UserError: the order of the resumed run is of another version of the program.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if (version := state.get("version", 1)) != ORDER_VERSION:
            raise UserError(
                f"the checkpoint was made when samples came in another order (version {version}, "
                f"now {ORDER_VERSION}), so its run cannot go on with the next sample; start a new "
                "one from its weights (--model.weights)."
            )
        if state["order"] != self._order_digest():
            rank_zero_warn(
                "the data, its weights, its seed or the samples of a step are others than when "
                "the checkpoint was made: some samples of this epoch will come again or not at all."
            )

    # Others -------------------------------------------------------------------------------------

    def _take_features(self, task_datasets: dict[str, list[TaskDataset]]) -> None:
        """Give cached features to the readers of target images."""
        takers = [
            (dataset, datasets[dataset.name].features)
            for datasets, objectives in (
                (self.datasets, task_datasets),
                (self.val_datasets, self.val_task_datasets),
            )
            for dataset in objectives.get(IMAGE_GENERATION, [])
        ]
        places = [(dataset.source, where) for dataset, where in takers]
        caches = open_feature_caches(places, self.processor, self.decoder.backend)
        for (dataset, _), cache in zip(takers, caches, strict=True):
            dataset.features = cache
        self.processor = replace(self.processor, features=None)  # of no use in a loader's process

    def weights(self, objective: str) -> dict[str, float]:
        """Weights of an objective's data sets by name; their sizes, where none is given.

        Raises:
            UserError: some have a weight and some have none.
        """
        members = {
            n: each
            for n, each in self.datasets.items()
            if OBJECTIVE_OF_TASK[each.task] == objective
        }
        without = [name for name, each in members.items() if each.weight is None]
        if without and len(without) < len(members):
            raise UserError(
                f"data set {without[0]!r} has no weight, but others have one; give every data set "
                "of an objective a weight, or none of them."
            )
        return {
            name: float(len(each.source) if each.weight is None else each.weight)
            for name, each in members.items()
        }

    def schedule(self, objective: str) -> GlobalBatchSampler:
        """The samples of an objective that make each step of this run."""
        batches = 1  # of a step, on all ranks together
        if self.trainer is not None:
            batches = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return GlobalBatchSampler(
            [dataset.source for dataset in self.task_datasets[objective]],
            self.mixtures[objective],
            self.batch_size * batches,
            self.seed,
            self.length_bucket_batches,
        )

    def _order_digest(self) -> int:
        if self._digest is None:
            self._digest = hash(
                tuple(self.schedule(objective).digest() for objective in self.task_datasets)
            )
        return self._digest

    def _in_order(self, processor: Preprocessing):
        def loader(objective: str) -> StepLoader:
            build = Collator(
                self.val_task_datasets[objective],
                processor,
                self.seed,
                self.decoder,
                replace_bad=False,
            )
            dataset = EvaluationDataset(build, self.batch_size, self.num_val_samples)
            return step_loader(dataset, None, self.num_workers)

        loaders = unwrap_single(
            {objective: loader(objective) for objective in self.val_task_datasets}
        )
        # each objective to its end: which samples are seen must not depend on the size of batches
        return CombinedLoader(loaders, "max_size") if isinstance(loaders, dict) else loaders


def group_by_objective(datasets: Mapping[str, DatasetConfig]) -> dict[str, list[TaskDataset]]:
    """Family -> its data sets, opened."""
    found: dict[str, list[TaskDataset]] = {}
    for name, ingredient in datasets.items():
        ingredient.source.open()
        dataset = ingredient.dataset(name)
        found.setdefault(dataset.objective, []).append(dataset)
    return found


def check_images(dataset: TaskDataset, most: int = 2000) -> None:
    """Refuse a task that needs images where the first `most` samples have none.

    Raises:
        UserError: they have none.
    """
    if dataset.task == TEXT_TO_TEXT:
        return
    looked_at = range(min(most, len(dataset.source)))
    if not any(dataset.source.has_image(number, "image") for number in looked_at):
        raise UserError(
            f"data set {dataset.name!r} has no images, which {dataset.task} needs; "
            "give it the task text_to_text, or another source."
        )


def unwrap_single(loaders: dict[str, StepLoader]) -> StepLoader | dict[str, StepLoader]:
    """The only loader, whose batches come as they are; or all, whose batches come in a dict."""
    return next(iter(loaders.values())) if len(loaders) == 1 else loaders
