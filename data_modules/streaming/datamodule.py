"""Training from shards that cannot be seeked: over http(s), s3, hf, or gzipped.

Shards are dealt to the loader workers of all ranks in another order every epoch, where there are
fewer of them in parts, and samples are shuffled in a buffer. So every sample comes once an epoch.
But workers whose shards are small begin the next epoch before the others, and a run resumes
at its step with another draw. Shards on a disk are better read by a `ShardDataModule`, which
promises more.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from glob import has_magic
from itertools import count, groupby
from operator import itemgetter
from random import Random
from typing import Any, Literal
from urllib.parse import urlparse

# Before webdataset is first imported, which reads it then: nothing runs a shell or unpickles. It
# also keeps webdataset from opening local files by itself, so this file is imported only when used.
os.environ["WDS_SECURE"] = "1"

import numpy as np
import webdataset
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.shardlists import expand_urls

from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import BadSampleCounter, check_texts
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.previews import Need, Preview, previews
from triptych.data_modules.sampling.step_dataset import (
    EvaluationDataset,
    StepLoader,
    require_step_based_run,
    step_loader,
)
from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.streaming.tar_stream import (
    BROKEN,
    EncodedSample,
    InMemorySamples,
    MemberLimits,
    check_url,
    open_url,
    read_samples,
)
from triptych.interfaces import TEXT_TO_IMAGE, Batch, Preprocessing
from triptych.utils.errors import UserError
from triptych.utils.listing.shards import find_shards
from triptych.utils.rng import mix

webdataset.utils.enforce_security = True  # also where someone imported it before us

MAX_EMPTY = 10  # shards in a row without a sample, then the run ends
Task = Literal["text_to_image", "image_to_image", "image_to_text"]


@dataclass
class ShardStream(IterableDataset):
    """Training batches from shards in random order, epoch after epoch without end.

    Worker w of W makes the batches start+w, start+w+W, ..., which is the order in which a
    DataLoader takes them, so that every batch knows its step.

    No batch of a rank holds a sample twice while the worker's share of an epoch has as many.

    Args:
        urls: the shards.
        task: task of the samples, see `TaskDataset`.
        processor: the model's tokenizer, limits and image sizes.
        batch_size: number of samples of this rank.
        start, stop: range of the remaining steps of the run.
        rank, world: rank of this process and number of ranks.
        seed: random seed of the draw, together with all of the above.
        buffer: number of samples, still encoded, in the shuffle buffer.
        caps: size limits of members.
    """

    urls: list[str]
    task: str
    processor: Preprocessing
    batch_size: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    buffer: int = 256
    caps: MemberLimits = field(default_factory=MemberLimits)

    def __len__(self) -> int:
        return self.stop  # of the whole run, as Lightning counts on when it resumes

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader, readers = self.rank * workers + worker, self.world * workers
        problems: list[BadSample] = []
        batches = distinct(self._samples(reader, readers, problems), self.batch_size)
        for step in range(self.start + worker, self.stop, workers):
            batch = self._batch(step, next(batches))
            batch.skipped += [(bad.key, bad.reason) for bad in problems]
            problems.clear()
            yield batch

    def _batch(self, step: int, samples: list[EncodedSample]) -> Batch:
        source = InMemorySamples("the stream", samples, self.caps)
        build = Collator([TaskDataset(source, self.task)], self.processor, self.seed)
        first = (step * self.world + self.rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        return build(step, [(0, place) for place in range(len(samples))], numbers)

    def _samples(
        self, reader: int, readers: int, problems: list[BadSample]
    ) -> Iterator[tuple[str, EncodedSample]]:
        """Samples with their shards, in random order; the problems of others go to `problems`.

        The buffer is emptied at the end of an epoch, before the next one begins.
        """
        parts = -(-readers // len(self.urls))
        pieces = self._pieces(reader, readers, parts)
        empty = deque(maxlen=MAX_EMPTY)
        for epoch, mine in groupby(pieces, itemgetter(0)):
            draws = Random(mix(self.seed, self.start, epoch, readers, reader))
            mixed = shuffle(self.buffer, initial=self.buffer, rng=draws)
            yield from mixed(self._read(mine, parts, problems, empty))

    def _pieces(self, reader: int, readers: int, parts: int) -> Iterator[tuple[int, str, int]]:
        """(epoch, shard, part of it) of a reader: all are dealt in turn, in a random order."""
        number = len(self.urls) * parts
        for epoch in count():
            order = np.random.default_rng(mix(self.seed, self.start, epoch)).permutation(number)
            for piece in order[(reader - epoch * number) % readers :: readers].tolist():
                yield epoch, self.urls[piece // parts], piece % parts

    def _read(
        self,
        pieces: Iterator[tuple[int, str, int]],
        parts: int,
        problems: list[BadSample],
        empty: deque[str],
    ) -> Iterator[tuple[str, EncodedSample]]:
        for _, url, part in pieces:
            empty.append(url)
            for number, sample in enumerate(read_shard_at(url, self.caps)):
                good = not isinstance(sample, BadSample)
                if good:
                    empty.clear()
                if number % parts != part:
                    continue
                if good:
                    yield url, sample
                else:
                    problems.append(sample)
            if len(empty) == MAX_EMPTY:
                raise UserError(
                    f"the last {MAX_EMPTY} shards of the stream gave no sample, "
                    f"{url} for one ({problems[-1] if problems else 'empty'})."
                )


def distinct(
    samples: Iterator[tuple[str, EncodedSample]], size: int
) -> Iterator[list[EncodedSample]]:
    """Group samples into batches without duplicates, compared by shard and key.

    A duplicate within a batch is put off to the next; a whole batch of duplicates means that there
    are fewer samples than a batch takes, and fills it.
    """
    later: deque[tuple[str, EncodedSample]] = deque()
    while True:
        batch: dict[tuple[str, str], EncodedSample] = {}
        again: list[tuple[str, EncodedSample]] = []
        while len(batch) < size and len(again) < size:
            url, sample = later.popleft() if later else next(samples)
            if (url, sample.key) in batch:
                again.append((url, sample))
            else:
                batch[url, sample.key] = sample
        missing = size - len(batch)
        yield [*batch.values(), *(sample for _, sample in again[:missing])]
        later.extendleft(reversed(again[missing:]))


def read_shard_at(url: str, caps: MemberLimits) -> Iterator[EncodedSample | BadSample]:
    """The samples of one shard; a shard that cannot be opened is one `BadSample`."""
    try:
        file = open_url(url)
    except BROKEN as error:
        yield BadSample(url, "shard cannot be opened", str(error))
        return
    with file:
        yield from read_samples(file, caps)


class StreamDataModule(LightningDataModule):
    """Samples from shards that cannot be seeked, without an index.

    Shards are WebDataset tars, gzipped or not, at http(s)://, s3://, gs://, hf:// or in files.
    Their order is random; the module's docstring lists the missing guarantees.

    Args:
        urls: addresses of the shards; "https://host/{00000..00099}.tar" names a hundred. Without a
            scheme also a folder, or a pattern.
        val_urls: shards to validate on, their first samples; null takes those of the first of
            `urls`.
        task: text_to_image, image_to_image or image_to_text.
        batch_size: samples per step and rank.
        num_val_samples: how many samples to validate on; they are kept in memory, still encoded.
        buffer: samples that wait in memory to be drawn from, of each worker, still encoded.
        max_image_bytes, max_text_bytes: larger members are read past.
        max_bad_fraction: end the run when more of the samples than this cannot be used.
        num_workers: loader processes.
        seed: of the draw.
    """

    def __init__(
        self,
        urls: str | list[str],
        val_urls: str | list[str] | None = None,
        task: Task = TEXT_TO_IMAGE,
        batch_size: int = 16,
        num_val_samples: int = 64,
        buffer: int = 256,
        max_image_bytes: int = 64 << 20,
        max_text_bytes: int = 1 << 20,
        max_bad_fraction: float = 0.01,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.urls, self.val_urls = expanded(urls), expanded(val_urls or urls)
        self.task, self.batch_size, self.num_val_samples = task, batch_size, num_val_samples
        self.buffer, self.num_workers, self.seed = buffer, num_workers, seed
        self.caps = MemberLimits(max_image_bytes, max_text_bytes)
        self.max_bad_fraction = max_bad_fraction
        self.bad_samples = BadSampleCounter(max_bad_fraction)
        self.processor: Preprocessing | None = None
        self.val_samples: InMemorySamples | None = None

    def connect(self, processor: Preprocessing) -> None:
        """Take the model's tokenizer and sizes; done by `setup` under a Trainer."""
        self.processor = processor

    def preview(self, objective: str, number: int, *needs: Need) -> list[Preview]:
        """Validation samples of an objective, see `previews`; none if none has `needs`."""
        dataset = TaskDataset(self.val_samples, self.task)
        if dataset.objective != objective:
            return []
        return previews([dataset], self.processor, number, set(needs), Decoder())

    def require(self, trainer: Trainer) -> None:
        """Refuse settings of a fit that a stream cannot follow.

        Raises:
            UserError: one of them counts in epochs, or wants the same batches again.
        """
        require_step_based_run(trainer)
        if trainer.overfit_batches:
            raise UserError(
                "--trainer.overfit_batches wants the same batches again, and a stream has none; "
                "leave it out, or take data that lies on a disk."
            )

    def setup(self, stage: str) -> None:
        if self.processor is None:
            self.connect(self.trainer.lightning_module.preprocessing())
        if self.val_samples is not None:
            return
        if hint := Decoder().hint:
            rank_zero_info(hint)
        for url in (*self.urls, *self.val_urls):
            check_url(url)
        self.val_samples = InMemorySamples("the stream", self._first_samples(), self.caps)
        check_texts(
            [TaskDataset(self.val_samples, self.task)], self.processor, self.max_bad_fraction
        )

    def train_dataloader(self) -> AccumulationLoader:
        trainer = self.trainer
        self.require(trainer)
        accumulate = trainer.accumulate_grad_batches
        rank_zero_info(
            f"streaming {len(self.urls)} shards in random order: a resumed run goes on at its step "
            "with another draw, not with the next sample."
        )
        stream = ShardStream(
            self.urls,
            self.task,
            self.processor,
            self.batch_size,
            trainer.global_step * accumulate,
            trainer.max_steps * accumulate,
            trainer.global_rank,
            trainer.world_size,
            self.seed,
            self.buffer,
            self.caps,
        )
        return AccumulationLoader(step_loader(stream, None, self.num_workers), trainer)

    def val_dataloader(self) -> StepLoader:
        return self._in_order(self.processor)

    def test_dataloader(self) -> StepLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> StepLoader:
        """The validation captions, in the prompt template of inference."""
        return self._in_order(replace(self.processor, training_template=self.processor.template))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.bad_samples.count(batch)
        return batch

    def teardown(self, stage: str) -> None:
        self.bad_samples.report()

    def _in_order(self, processor: Preprocessing) -> StepLoader:
        datasets = [TaskDataset(self.val_samples, self.task)]
        build = Collator(datasets, processor, self.seed, replace_bad=False)
        dataset = EvaluationDataset(build, self.batch_size, self.num_val_samples)
        return step_loader(dataset, None, self.num_workers)

    def _first_samples(self) -> list[EncodedSample]:
        """The first samples of the validation shards.

        Raises:
            UserError: there is none, so that the addresses are wrong, or nobody answers.
        """
        found: list[EncodedSample] = []
        last = None
        for url in self.val_urls[:MAX_EMPTY]:
            for sample in read_shard_at(url, self.caps):
                if isinstance(sample, BadSample):
                    last = sample
                elif len(found) < self.num_val_samples:
                    found.append(sample)
                if len(found) >= self.num_val_samples:
                    return found
        if not found:
            raise UserError(
                f"no sample could be read from {self.val_urls[0]}: {last or 'it is empty'}."
            )
        return found


def expanded(urls: str | list[str]) -> list[str]:
    """Addresses, one a shard: braces written out, local folders and patterns looked into.

    Raises:
        UserError: there is none.
    """
    found = []
    for each in [urls] if isinstance(urls, str) else urls:
        listed = not urlparse(each).scheme and (os.path.isdir(each) or has_magic(each))
        found += map(str, find_shards(each, gzipped=True)) if listed else expand_urls(each)
    if not found:
        raise UserError("data.urls is empty; give the address of a shard.")
    return found
