"""StreamDataModule: training from shards over http(s), s3, gs or hf, or gzipped.

Every sample comes once per epoch. But workers with small shards begin the next epoch before the
others, and a run resumes at its step with another draw. Shards on a disk are better read by a
`ShardDataModule`, which promises more.
"""

from __future__ import annotations

from typing import Literal

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from triptych.data_modules.base import BaseDataModule
from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import check_texts
from triptych.data_modules.batching.tasks import IMAGE_PROMPT_TASKS, TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sampling.step_dataset import step_loader
from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.streaming.shard_stream import MAX_EMPTY, ShardStream, read_shard_at
from triptych.data_modules.streaming.tar_stream import (
    EncodedSample,
    InMemorySamples,
    MemberLimits,
)
from triptych.data_modules.streaming.urls import check_url, list_shard_urls
from triptych.interfaces import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, BatchContents
from triptych.utils.errors import UserError

Task = Literal["text_to_image", "image_to_image", "image_to_text"]


class StreamDataModule(BaseDataModule):
    """Samples from shards that cannot be seeked, without an index.

    Shards are WebDataset tars, gzipped or not, at http(s)://, s3://, gs://, hf:// or in files.
    Their order is random; the module's docstring lists the missing guarantees.

    Args:
        urls: addresses of the shards; "https://host/{00000..00099}.tar" names a hundred. An address
            without a scheme may be a folder or a pattern.
        val_urls: addresses of the validation shards, of which the first samples are taken; null
            takes those of `urls`.
        task: text_to_image, image_to_image or image_to_text.
        batch_size: number of samples per step and rank.
        shared_batch: `batch_size` is that of all ranks together, see `BaseDataModule`.
        num_val_samples: number of validation samples, held in memory, still encoded.
        buffer: number of samples in the shuffle buffer of each worker, still encoded.
        max_image_bytes: size limit of images; a larger one is a bad sample.
        max_text_bytes: size limit of captions and JSON; a larger one makes a bad sample.
        max_bad_fraction: largest fraction of unusable samples before the run ends.
        num_workers: number of loader processes.
        seed: random seed of the draw.
    """

    def __init__(
        self,
        urls: str | list[str],
        val_urls: str | list[str] | None = None,
        *,
        task: Task = TEXT_TO_IMAGE,
        batch_size: int = 16,
        shared_batch: bool = False,
        num_val_samples: int = 64,
        buffer: int = 256,
        max_image_bytes: int = 64 << 20,
        max_text_bytes: int = 1 << 20,
        max_bad_fraction: float = 0.01,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            shared_batch=shared_batch,
            num_val_samples=num_val_samples,
            num_workers=num_workers,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
            decoder=Decoder(),
        )
        self.urls, self.val_urls = list_shard_urls(urls), list_shard_urls(val_urls or urls)
        self.task, self.buffer = task, buffer
        self.limits = MemberLimits(max_image_bytes, max_text_bytes)

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuse settings of a fit that a stream cannot follow.

        Raises:
            UserError: one of them counts in epochs, or repeats the same batches.
        """
        super().check_trainer(trainer)
        if trainer.overfit_batches:
            raise UserError(
                "--trainer.overfit_batches wants the same batches again, and a stream has none; "
                "leave it out, or take data that lies on a disk."
            )

    def batch_contents(self) -> BatchContents:
        return BatchContents(
            has_features=False,
            shows_images=self.task in IMAGE_PROMPT_TASKS,
            has_sources=self.task == IMAGE_TO_IMAGE,
        )

    def open_datasets(self) -> None:
        for url in (*self.urls, *self.val_urls):
            check_url(url)
        samples = InMemorySamples("the stream", self._first_samples(), self.limits)
        dataset = TaskDataset(samples, self.task)
        check_texts([dataset], self.processor, self.max_bad_fraction)
        self.val_task_datasets = {dataset.objective: [dataset]}

    def train_dataloader(self) -> AccumulationLoader:
        trainer = self.trainer
        self.check_trainer(trainer)
        accumulate = trainer.accumulate_grad_batches
        rank_zero_info(
            f"streaming {len(self.urls)} shards in random order: a resumed run goes on at its step "
            "with another draw, not with the next sample."
        )
        stream = ShardStream(
            self.urls,
            self.task,
            self.processor,
            batch_size=self.rank_batch_size,
            start=trainer.global_step * accumulate,
            stop=trainer.max_steps * accumulate,
            rank=trainer.global_rank,
            world=trainer.world_size,
            seed=self.seed,
            buffer=self.buffer,
            limits=self.limits,
        )
        return AccumulationLoader(step_loader(stream, None, self.num_workers), trainer)

    def _first_samples(self) -> list[EncodedSample]:
        """The first samples of the validation shards.

        Raises:
            UserError: there is none, so the addresses are wrong, or the host does not answer.
        """
        samples: list[EncodedSample] = []
        last = None
        for url in self.val_urls[:MAX_EMPTY]:
            for sample in read_shard_at(url, self.limits):
                if isinstance(sample, BadSample):
                    last = sample
                elif len(samples) < self.num_val_samples:
                    samples.append(sample)
                if len(samples) >= self.num_val_samples:
                    return samples
        if not samples:
            raise UserError(
                f"no sample could be read from {self.val_urls[0]}: {last or 'it is empty'}."
            )
        return samples
