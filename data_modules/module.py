"""The DataModules: shards in, batches out, at a position that is a function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, Sampler

from triptych.contracts import FAMILIES, TEXT_TO_IMAGE, Preprocessing, UserError
from triptych.shapes.shards import ensure_shapes

from .bad_samples import check_texts
from .batches import BatchBuilder
from .shards import ShardFolder, order
from .tasks import Reading

# Validation draws must not depend on the step: their sample numbers start here.
VALIDATION_SAMPLES = 1 << 40


class StepDataset(Dataset):
    """Item k is training batch k: a pure function of (seed, k, rank, world).

    The global batch k holds the global sample numbers k*world*batch_size ... and the ranks take
    equal consecutive parts of it, so that the same pictures meet the same noise on any number of
    ranks. Every sample comes once an epoch; the order differs between epochs.
    """

    def __init__(
        self, build: BatchBuilder, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.build, self.batch_size, self.seed = build, batch_size, seed
        self.rank, self.world = rank, world
        self._epoch, self._order = -1, None

    def __getitem__(self, step: int):
        first = (step * self.world + self.rank) * self.batch_size
        samples = range(first, first + self.batch_size)
        return self.build(step, [(0, self._number(sample)) for sample in samples], samples)

    def _number(self, sample: int) -> int:
        length = len(self.build.readings[0].source)
        epoch, place = divmod(sample, length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(length, self.seed, epoch)
        return int(self._order[place])


class Steps(Sampler[int]):
    """Step numbers from `start` to `stop`. Its length is that of the whole run, as Lightning
    counts on when it resumes in the middle."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


class StepLoader(DataLoader):
    """A loader of a `StepDataset` that Lightning knows to be resumable.

    There is no state to keep: a resumed run makes a new loader that starts at its global step.
    """

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class EvaluationDataset(Dataset):
    """The first `limit` samples in order, in batches."""

    def __init__(self, build: BatchBuilder, batch_size: int, limit: int) -> None:
        self.build, self.batch_size = build, batch_size
        self.length = min(limit, len(build.readings[0].source))

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __getitem__(self, index: int):
        first = index * self.batch_size
        numbers = range(first, min(first + self.batch_size, self.length))
        places = [(0, number) for number in numbers]
        return self.build(index, places, [VALIDATION_SAMPLES + n for n in numbers])


class ShardDataModule(LightningDataModule):
    """Captioned pictures (and conversations about them) from local WebDataset shards.

    Args:
        shards: folder, file or glob pattern of training shards.
        val_shards: the same for validation; null validates on the first training samples.
        tasks: what to make of the samples: "text_to_image", "image_to_image" (reconstruction, or
            editing), "image_to_text" or "text_to_text"; several at once are joint training, with
            one batch of each in every step.
        batch_size: samples per step and rank, of each task.
        val_samples: how many samples to validate on.
        text_only: share of image_to_text samples that talk about the caption, without a picture.
        conversation: the list of [question, answer] turns in KEY.json to learn from; a sample
            without it is described by its caption.
        turns: take so many turns of a conversation, others every time; null takes all, in order.
        num_workers: loader processes.
        seed: of the order.
    """

    def __init__(
        self,
        shards: str,
        val_shards: str | None = None,
        tasks: list[str] | None = None,
        batch_size: int = 16,
        val_samples: int = 256,
        text_only: float = 0.0,
        conversation: str = "conversation",
        turns: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shards, self.val_shards = shards, val_shards
        self.tasks = tasks or [TEXT_TO_IMAGE]
        for task in self.tasks:
            if task not in FAMILIES:
                raise UserError(
                    f"data.tasks: {task!r} is unknown; choose one of {', '.join(FAMILIES)}."
                )
        self.batch_size, self.val_samples, self.text_only = batch_size, val_samples, text_only
        self.conversation, self.turns = conversation, turns
        self.num_workers, self.seed = num_workers, seed
        self.known: Preprocessing | None = None
        self.train_folder: ShardFolder | None = None

    def connect(self, known: Preprocessing) -> None:
        """Take the model's tokenizer and sizes; done by `setup` under a Trainer."""
        self.known = known

    def setup(self, stage: str) -> None:
        if self.known is None:
            self.connect(self.trainer.lightning_module.preprocessing())
        if self.train_folder is None:
            self.train_folder = ShardFolder(self.shards).open()
            self.val_folder = ShardFolder(self.val_shards or self.shards).open()
            readings = [self._reading(self.train_folder, task) for task in self.tasks]
            check_texts(readings, self.known, max_fraction=0.01, seed=self.seed)

    def train_dataloader(self):
        trainer = self.trainer
        if trainer.max_steps < 1:
            raise UserError("set --trainer.max_steps: the run's length is counted in steps.")
        accumulate = trainer.accumulate_grad_batches
        steps = Steps(trainer.global_step * accumulate, trainer.max_steps * accumulate)
        return self._by_task(
            lambda task: self._loader(
                StepDataset(
                    self._builder(self.train_folder, task, self.known),
                    self.batch_size,
                    self.seed,
                    trainer.global_rank,
                    trainer.world_size,
                ),
                steps,
            )
        )

    def val_dataloader(self):
        return self._in_order(self.known)

    def test_dataloader(self):
        return self.val_dataloader()

    def predict_dataloader(self):
        """The validation captions, put to the model as whoever asks for a picture puts them."""
        return self._in_order(replace(self.known, training_template=self.known.template))

    def preview_captions(self, number: int) -> list[str]:
        """Captions of validation samples, for sample grids."""
        return [self.val_folder.caption(n) for n in range(min(number, len(self.val_folder)))]

    def _in_order(self, known: Preprocessing):
        return self._by_task(
            lambda task: self._loader(
                EvaluationDataset(
                    self._builder(self.val_folder, task, known), self.batch_size, self.val_samples
                )
            )
        )

    def _by_task(self, make):
        if len(self.tasks) == 1:
            return make(self.tasks[0])
        return CombinedLoader({task: make(task) for task in self.tasks}, "min_size")

    def _builder(self, folder: ShardFolder, task: str, known: Preprocessing) -> BatchBuilder:
        return BatchBuilder([self._reading(folder, task)], known, self.seed)

    def _reading(self, folder: ShardFolder, task: str) -> Reading:
        return Reading(
            folder,
            task,
            text_only=self.text_only,
            conversation=self.conversation,
            turns=self.turns,
        )

    def _loader(self, dataset: Dataset, sampler: Sampler | None = None) -> DataLoader:
        return StepLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class ShapesDataModule(ShardDataModule):
    """The embedded shapes world: draws its shards once, then reads them like any others.

    Args:
        folder: where the shards are drawn: folder/train, /eval, /unseen and /instruct.
        part: which of them to train on: "train", or "instruct" with short captions only.
        pictures: number of training pictures.
        world_seed: seed of the drawings.
        tasks, batch_size, val_samples, text_only, conversation, turns, num_workers, seed: see
            `ShardDataModule`.
    """

    def __init__(
        self,
        folder: str = "data/shapes",
        part: Literal["train", "instruct"] = "train",
        pictures: int = 30000,
        world_seed: int = 0,
        tasks: list[str] | None = None,
        batch_size: int = 16,
        val_samples: int = 256,
        text_only: float = 0.0,
        conversation: str = "conversation",
        turns: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        root = Path(folder)
        super().__init__(
            str(root / part),
            str(root / "eval"),
            tasks,
            batch_size,
            val_samples,
            text_only,
            conversation,
            turns,
            num_workers,
            seed,
        )
        self.folder, self.pictures, self.world_seed = root, pictures, world_seed

    def prepare_data(self) -> None:
        try:
            ensure_shapes(self.folder, train=self.pictures, seed=self.world_seed)
        except ValueError as error:  # something else is in the folder
            raise UserError(str(error)) from error
