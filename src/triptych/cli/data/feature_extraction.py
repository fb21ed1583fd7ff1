"""`triptych data features`: the frozen encoder over shards, once, by Lightning's predict loop.

Each process takes whole shards and writes one sidecar a shard; finished shards are skipped,
so an interrupted run resumes, and several machines may each take a part of the shards.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triptych import __version__
from triptych.checkpoints import require_files
from triptych.checkpoints.run_folder import is_first_process
from triptych.cli.predict import RESUME, Devices
from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.features.cache import (
    MANIFEST,
    VERSION,
    config_hash,
    finished,
    home,
    shard_names,
)
from triptych.data_modules.features.shard_file import DTYPES, ENDING, SidecarWriter, read_metadata
from triptych.data_modules.shards.identity import file_stamp
from triptych.inference.loading import describe_model, find_source
from triptych.modules.feature_extraction import FeatureModule, Images
from triptych.training.ranks import ending_together, take_over, watch_launched
from triptych.utils.atomic_write import alone_in, replacing
from triptych.utils.disk_usage import announce, refuse_other_files, require_place
from triptych.utils.documents import parse_json
from triptych.utils.errors import ImageError, UserError
from triptych.utils.images import stack_images
from triptych.utils.signals import ignore_in_worker, supervisor

# Names of the files in a folder of features; hidden files are not looked at.
OURS = re.compile(rf"({re.escape(MANIFEST)}|.*{re.escape(ENDING)})(\.partial)?|\..*")


def extract(options: argparse.Namespace) -> None:
    """Do what `triptych data features` was asked for; `features` has the options.

    Raises:
        UserError: there is no such model or device, or a flag has nothing to act on.
    """
    if options.low_memory or options.quantize:
        raise UserError(
            "only the encoder is loaded to compute features; leave out --low-memory and --quantize."
        )
    devices = Devices.of(options, options.precision)
    found = find_source(options.config or options.source, options.ema)
    flags = [*found.overrides, *options.overrides]
    if options.dtype not in (None, "float32"):
        flags.append(f"--model.execution.frozen_dtype={options.dtype}")
    model = describe_model(found.configs, flags, options.trust_class)
    require_files(model.weights)
    devices.trainer()  # refuses what Lightning has not before anything is read
    if options.out is not None:
        require_place("features", options.out)
        refuse_other_files(options.out, OURS, "--out")
    source = ShardFolder(options.folder).open()  # indexes shards that have no index yet
    shard_names(source.paths)  # refuses equal ones before the weights are read
    module = FeatureModule(model, options.encoder)
    module.refuse_trained(found.trained)
    made = Making(
        folder=options.out or home(source),
        identity={**module.identity(), "image_backend": options.image_backend},
        dtype=options.storage_dtype,
    )
    line = made.extract(source, module, options.batch_size, options.workers or 0, devices)
    if line:
        print(line)


@dataclass
class Making:
    """A folder of features, as it is made."""

    folder: Path
    identity: dict[str, Any]
    dtype: str

    @property
    def config_hash(self) -> str:
        return config_hash(self.identity, self.dtype)

    def extract(
        self,
        source: ShardFolder,
        module: FeatureModule,
        batch_size: int = 32,
        workers: int = 0,
        devices: Devices | None = None,
    ) -> str | None:
        """Write missing sidecars, then the manifest; return a line about it, in the first process.

        Raises:
            UserError: another process is writing there.
        """
        if is_first_process():
            refuse_other_files(self.folder, OURS, "--out")
            if todo := self.missing(source):
                samples = int(sum(source.shard_sizes[shard] for shard in todo))
                size = samples * self.bytes_of(module)
                announce(f"features of {samples:,} samples", self.folder, size)
        # a process for each device comes here; the first one holds the folder for all
        with alone_in(self.folder) if is_first_process() else nullcontext():
            return self._extract(source, module, batch_size, workers, devices or Devices())

    def _extract(
        self,
        source: ShardFolder,
        module: FeatureModule,
        batch_size: int,
        workers: int,
        devices: Devices,
    ) -> str | None:
        if todo := self.missing(source):
            with supervisor.handled(RESUME):
                watch_launched()
                write = WriteSidecars(self, source, todo, module.encoder.feature_shape)
                trainer = devices.trainer([write], most=len(todo))
                take_over(trainer)
                read = ImageReader(
                    source, Decoder(self.identity["image_backend"]), module.image_size
                )
                data = ShardImages(read, todo, batch_size, workers)
                if hint := read.decode.hint:
                    rank_zero_info(hint)
                with ending_together():
                    trainer.predict(module, data, return_predictions=False)
            if not trainer.is_global_zero:
                return None
        return self.write_manifest(devices.precision)

    def missing(self, source: ShardFolder) -> list[int]:
        """Numbers of the shards whose features are not there yet, or do not hold."""
        sidecars = self.sidecars(source)
        return [
            shard
            for shard, samples in enumerate(source.shard_sizes)
            if samples and not finished(source.paths[shard], sidecars[shard], self.config_hash)
        ]

    def sidecars(self, source: ShardFolder) -> list[Path]:
        """The file of each shard's features."""
        return [self.folder / (name + ENDING) for name in shard_names(source.paths)]

    def bytes_of(self, module: FeatureModule) -> int:
        """Bytes of the features of one sample."""
        return math.prod(module.encoder.feature_shape) * DTYPES[self.dtype].itemsize

    def write_manifest(self, precision: str) -> str:
        """Write the manifest from the sidecars; return a line about it."""
        shards, squares, errors = {}, 0.0, 0.0
        for path in sorted(self.folder.glob("*" + ENDING)):
            said = read_metadata(path)
            if said is None or said.get("digest") != self.config_hash:
                continue
            counts = {name: int(said[name]) for name in ("samples", "unreadable")}
            shards[path.name.removesuffix(ENDING)] = {**parse_json(said["shard"], path), **counts}
            squares += float(said["squares"])
            errors += float(said["square_errors"])
        error = (errors / squares) ** 0.5 if squares else 0.0
        samples, unreadable = (
            sum(each[name] for each in shards.values()) for name in ("samples", "unreadable")
        )
        manifest = {
            "version": VERSION,
            "identity": self.identity,
            "dtype": self.dtype,
            "relative_rms_error": error,
            "samples": samples,
            "unreadable": unreadable,
            "shards": shards,
            "made_with": {**versions(), "precision": precision},
        }
        with replacing(self.folder / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        return (
            f"{self.folder}: features of {samples} samples in {len(shards)} shards, {self.dtype}, "
            f"relative RMS error {error:.1e}; {unreadable} images could not be read"
        )


class WriteSidecars(BasePredictionWriter):
    """One sidecar a shard, as the batches of its samples come in."""

    def __init__(
        self, made: Making, source: ShardFolder, shards: list[int], shape: tuple[int, int, int]
    ) -> None:
        super().__init__("batch")
        self.made, self.sidecars, self.shape = made, made.sidecars(source), shape
        # before they are read: one that changes meanwhile is then found to be another
        self.stamps = {shard: file_stamp(source.paths[shard]) for shard in shards}
        self._shard, self._writer, self._unreadable = -1, None, 0

    def write_on_batch_end(
        self, trainer, module, prediction: Tensor, indices, batch: Images, *numbers: int
    ) -> None:
        if batch.shard != self._shard:
            self._finish()
            path = self.sidecars[batch.shard]
            self._shard, self._writer = (
                batch.shard,
                SidecarWriter(path, self.made.dtype, self.shape),
            )
            self._unreadable = 0
        self._writer.add(batch.keys, prediction)
        self._unreadable += batch.unreadable

    def on_predict_end(self, trainer: Trainer, module: FeatureModule) -> None:
        self._finish()
        trainer.strategy.barrier()  # the manifest is written when all have finished

    def on_exception(self, trainer: Trainer, module: FeatureModule, exception) -> None:
        if self._writer is not None:
            self._writer.abandon()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close(
                {
                    "digest": self.made.config_hash,
                    "shard": json.dumps(self.stamps[self._shard]),
                    "samples": str(len(self._writer.keys)),
                    "unreadable": str(self._unreadable),
                }
            )
            self._writer = None


@dataclass(frozen=True)
class ImageReader:
    """A shard's images by number, as squares uint8 [3,size,size]; those that can be read."""

    source: ShardFolder
    decode: Decoder
    size: int

    def __call__(self, shard: int, numbers: range) -> Images:
        keys, images = [], []
        for number in numbers:
            try:
                images += self.decode(self.source.image_bytes(number), self.size)
            except (BadSample, ImageError):
                continue
            keys.append(self.source.key(number))
        none = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        pixels = stack_images(images) if images else none
        return Images(shard, keys, pixels, len(numbers) - len(keys))


class ShardImages(LightningDataModule):
    """The images of shards, in order; every process takes shards of its own."""

    def __init__(self, read: ImageReader, shards: list[int], batch_size: int, workers: int) -> None:
        super().__init__()
        self.read, self.shards, self.batch_size, self.workers = read, shards, batch_size, workers

    def predict_dataloader(self) -> DataLoader:
        mine = self.shards[self.trainer.global_rank :: self.trainer.world_size]
        dataset = ShardImageBatches(self.read, mine, self.batch_size)
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


def versions() -> dict[str, str]:
    """Versions of the software that made the features, for the record."""
    from importlib.metadata import version

    packages = ("torch", "timm", "transformers", "diffusers", "pillow")
    return {"triptych": __version__, **{name: version(name) for name in packages}}
