"""Images of shards as batches for the encoder, by Lightning's predict loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.batching.messages import MESSAGES, made_images
from triptych.data_modules.decode import Decoder
from triptych.data_modules.features.cache import row_key
from triptych.modules.feature_extraction import Images
from triptych.utils.errors import ImageError
from triptych.utils.images import stack_images
from triptych.utils.signals import ignore_in_worker


def made_by_assistant(source: ShardFolder, number: int) -> list[str]:
    """Names of the images that the assistant makes in a sample's conversation, if it has one."""
    try:
        return made_images(source.metadata(number).get(MESSAGES))
    except BadSample:
        return []


def images_of_first(source: ShardFolder, shard: int) -> int:
    """Number of images of a shard's first sample, as of each of them nearly; 0 without samples."""
    ends = source.shard_sizes.cumsum()
    number = int(ends[shard] - source.shard_sizes[shard])
    if number == ends[shard]:
        return 0
    return 1 + len(made_by_assistant(source, number))


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a shard as uint8 squares [3,size,size]; skips unreadable ones.

    Of a conversation these are the sample's image, the first, and all that the assistant makes.
    """

    source: ShardFolder
    decode: Decoder
    size: int

    def __call__(self, shard: int, numbers: range) -> Images:
        source = self.source
        keys, images, named, tried = [], [], 0, 0
        for number in numbers:
            for name in (None, *made_by_assistant(source, number)):
                tried += 1
                try:
                    if name is None:
                        data = source.image_bytes(number)
                    else:
                        data = source.named_image_bytes(number, name)
                    images += self.decode(data, self.size)
                except (BadSample, ImageError):
                    continue
                key = source.key(number)
                keys.append(key if name is None else row_key(key, name))
                named += name is not None
        empty = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        pixels = stack_images(images) if images else empty
        return Images(shard, keys, pixels, tried - len(keys), named, at_once=len(numbers))


class ShardImages(LightningDataModule):
    """Images of shards, in order; each process takes different shards, or none."""

    def __init__(self, read: ImageReader, shards: list[int], batch_size: int, workers: int) -> None:
        super().__init__()
        # a launcher may have started more processes than there are shards left
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.read, self.shards, self.batch_size, self.workers = read, shards, batch_size, workers

    def predict_dataloader(self) -> DataLoader:
        shards = self.shards[self.trainer.global_rank :: self.trainer.world_size]
        dataset = ShardImageBatches(self.read, shards, self.batch_size)
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=ignore_in_worker,
        )


class ShardImageBatches(Dataset):
    """Item k is a batch of the images of one shard."""

    def __init__(self, read: ImageReader, shards: list[int], batch_size: int) -> None:
        self.read = read
        ends = [0, *read.source.shard_sizes.cumsum().tolist()]
        self.batches = [
            (shard, range(first, min(first + batch_size, ends[shard + 1])))
            for shard in shards
            for first in range(ends[shard], ends[shard + 1], batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Images:
        return self.read(*self.batches[index])
