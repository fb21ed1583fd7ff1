"""MixedDataModule: data sets of any formats and tasks, mixed by weight."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from triptych.data_modules.base import BaseDataModule, unwrap_single
from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import check_texts
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import IMAGE_PROMPT_TASKS, SOURCE_TASKS, TaskDataset
from triptych.data_modules.dataset_config import (
    DatasetConfig,
    dataset_weights,
    open_by_objective,
    require_known_tasks,
)
from triptych.data_modules.decode import Decoder, ImageBackend
from triptych.data_modules.features.cache import open_feature_caches
from triptych.data_modules.sampling.batch_sampler import ORDER_VERSION, GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import (
    StepDataset,
    StepLoader,
    make_step_sampler,
    step_loader,
)
from triptych.interfaces import (
    IMAGE_GENERATION,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    TEXT_TO_REWARD,
    TEXT_TO_TEXT,
    BatchContents,
)
from triptych.utils.errors import UserError


class MixedDataModule(BaseDataModule):
    """Data sets of any formats and tasks, mixed by weight.

    Tasks that generate images have one objective, tasks that write text the other. The data sets of
    an objective share its batches; with both objectives, every step takes one batch of each: joint
    training.

    Every sample comes once per epoch of its data set, whatever the buckets, ranks and workers, and
    no step takes a sample twice unless it takes more samples of a data set than there are. The
    number of epochs of each data set is logged as `data/epochs/NAME`. A resumed run continues with
    the next sample, also on other ranks and workers, if the number of samples per step is the same.

    Args:
        datasets: training data sets, by name.
        val_datasets: validation data sets; null validates on the first training samples.
        batch_size: number of samples per batch and rank, of each objective; a step takes as many
            batches as there are ranks, times trainer.accumulate_grad_batches.
        shared_batch: `batch_size` is that of all ranks together, see `BaseDataModule`.
        num_val_samples: number of validation samples of each objective.
        num_workers: number of loader processes.
        seed: random seed of the order of samples.
        steps_per_batch: number of consecutive steps that take the same samples: an algorithm that
            learns from images of its own learns several times from each.
        length_bucket_batches: number of global batches among which samples are sorted by caption
            length, so that batches need little padding; 1 does not sort, nor does a data set with
            unknown caption lengths.
        max_bad_fraction: largest fraction of unusable samples before the run ends.
        image_backend: library that makes images squares, see `Decoder`: "torchvision", or "pillow"
            for the published transform to the bit, which drops alpha channels.
        max_pixels: pixel limit; a larger image is a bad sample, and is not decoded.
    """

    def __init__(
        self,
        datasets: dict[str, DatasetConfig],
        val_datasets: dict[str, DatasetConfig] | None = None,
        *,
        batch_size: int = 16,
        shared_batch: bool = False,
        num_val_samples: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_batch: int = 1,
        length_bucket_batches: int = 64,
        max_bad_fraction: float = 0.01,
        image_backend: ImageBackend = "torchvision",
        max_pixels: int = Decoder.max_pixels,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            num_workers=num_workers,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
            decoder=Decoder(image_backend, max_pixels),
        )
        if not datasets:
            raise UserError("data.datasets is empty; name at least one data set.")
        if min(batch_size, length_bucket_batches, steps_per_batch) < 1:
            raise UserError(
                "data.batch_size, data.length_bucket_batches and data.steps_per_batch must be 1 or "
                "more."
            )
        self.datasets, self.val_datasets = datasets, val_datasets or datasets
        require_known_tasks(self.datasets)
        require_known_tasks(self.val_datasets)
        self.length_bucket_batches, self.steps_per_batch = length_bucket_batches, steps_per_batch
        self.task_datasets: dict[str, list[TaskDataset]] = {}
        """Objective -> its training data sets; empty before `setup`."""
        self.mixtures: dict[str, Mixture] = {}
        self._digest: int | None = None

    def open_datasets(self) -> None:
        val_task_datasets = open_by_objective(self.val_datasets)
        task_datasets = open_by_objective(self.datasets)
        self._attach_features(task_datasets, val_task_datasets)
        self.mixtures = {objective: Mixture(self.weights(objective)) for objective in task_datasets}
        for datasets in task_datasets.values():
            for dataset in datasets:
                check_images(dataset)
            check_texts(datasets, self.processor, self.max_bad_fraction, seed=self.seed)
        self.task_datasets, self.val_task_datasets = task_datasets, val_task_datasets

    def batch_contents(self) -> BatchContents:
        configs = [*self.datasets.values(), *self.val_datasets.values()]
        generating = [
            dataset
            for opened in (self.task_datasets, self.val_task_datasets)
            for dataset in opened.get(IMAGE_GENERATION, [])
        ]
        return BatchContents(
            has_features=bool(generating) and all(each.has_all_features for each in generating),
            shows_images=any(config.task in IMAGE_PROMPT_TASKS for config in configs),
            has_sources=any(config.task in SOURCE_TASKS for config in configs),
        )

    # Lightning hooks ----------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Open all data in one process first: what it builds, such as an index, is built once."""
        for config in [*self.datasets.values(), *self.val_datasets.values()]:
            config.source.open()

    def train_dataloader(self) -> AccumulationLoader:
        trainer = self.trainer
        accumulate, steps = trainer.accumulate_grad_batches, make_step_sampler(trainer)
        rank, world = trainer.global_rank, trainer.world_size

        def loader(objective: str, datasets: list[TaskDataset]) -> StepLoader:
            if (samples := sum(len(dataset.source) for dataset in datasets)) < world:
                raise UserError(
                    f"there are {world} ranks for {samples} samples of {objective}, so some would "
                    "train on the same; lower --trainer.devices or add data."
                )
            collate = Collator(datasets, self.processor, self.seed, decoder=self.decoder)
            sampler = self.batch_sampler(objective)
            for name, (samples, taken) in sampler.oversampled().items():
                rank_zero_info(
                    f"data set {name!r} has {samples} samples, and a step takes up to {taken} of "
                    "it: its batches hold samples more than once."
                )
            dataset = StepDataset(
                collate,
                sampler,
                rank=rank,
                world=world,
                accumulate=accumulate,
                steps_per_batch=self.steps_per_batch,
            )
            return step_loader(dataset, steps, self.num_workers)

        loaders = {
            objective: loader(objective, datasets)
            for objective, datasets in self.task_datasets.items()
        }
        return AccumulationLoader(unwrap_single(loaders), trainer)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.task_datasets and self.trainer is not None:
            step = self.trainer.global_step
            for objective in self.task_datasets:
                taken = -(-step // self.steps_per_batch)
                epochs = self.batch_sampler(objective).epochs(taken)
                counts = ", ".join(f"{name} {number:.2f}" for name, number in epochs.items())
                rank_zero_info(f"epochs gone through after {step} steps of {objective}: {counts}")
        super().teardown(stage)

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

    def _attach_features(
        self,
        task_datasets: dict[str, list[TaskDataset]],
        val_task_datasets: dict[str, list[TaskDataset]],
    ) -> None:
        """Give cached features to the data sets of image generation."""
        pairs = [
            (dataset, configs[dataset.name].features)
            for configs, opened in (
                (self.datasets, task_datasets),
                (self.val_datasets, val_task_datasets),
            )
            for dataset in opened.get(IMAGE_GENERATION, [])
        ]
        sources = [(dataset.source, folder) for dataset, folder in pairs]
        caches = open_feature_caches(sources, self.processor, self.decoder.backend)
        for (dataset, _), cache in zip(pairs, caches, strict=True):
            dataset.features = cache
        self.processor = replace(self.processor, features=None)  # not used by a loader's process

    def weights(self, objective: str) -> dict[str, float]:
        """Weights of an objective's data sets, by name, see `dataset_weights`."""
        return dataset_weights(self.datasets, objective)

    def batch_sampler(self, objective: str) -> GlobalBatchSampler:
        """Sampler of the global batches of an objective in this run."""
        batches = 1  # of a step, on all ranks together
        if self.trainer is not None:
            batches = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return GlobalBatchSampler(
            [dataset.source for dataset in self.task_datasets[objective]],
            self.mixtures[objective],
            self.rank_batch_size * batches,
            seed=self.seed,
            length_bucket_batches=self.length_bucket_batches,
        )

    def _order_digest(self) -> int:
        if self._digest is None:
            order = [self.batch_sampler(objective).digest() for objective in self.task_datasets]
            if self.steps_per_batch > 1:
                order.append(self.steps_per_batch)
            self._digest = hash(tuple(order))
        return self._digest


def check_images(dataset: TaskDataset, max_samples: int = 2000) -> None:
    """Refuse a task that needs images if the first `max_samples` samples have none.

    Raises:
        UserError: none of them has an image.
    """
    if dataset.task in (TEXT_TO_TEXT, TEXT_TO_REWARD, INTERLEAVED, INTERLEAVED_IMAGES):
        return
    numbers = range(min(max_samples, len(dataset.source)))
    if not any(dataset.source.has_image(number, "image") for number in numbers):
        raise UserError(
            f"data set {dataset.name!r} has no images, which {dataset.task} needs; "
            "give it the task text_to_text, or another source."
        )
