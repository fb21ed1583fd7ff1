"""`triptych data features`: the frozen encoder over shards by Lightning's predict loop.

Each process takes whole shards and writes one sidecar for each; finished shards are skipped, so an
interrupted run resumes, and several machines may share the shards.
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

# Names of the files in a feature folder; hidden files are ignored.
FEATURE_FILES = re.compile(rf"({re.escape(MANIFEST)}|.*{re.escape(ENDING)})(\.partial)?|\..*")


def extract(options: argparse.Namespace) -> None:
    """Run `triptych data features`, whose options `features` parses.

    Raises:
        UserError: the model or device does not exist, or a flag has no effect.
    """
    if options.low_memory or options.quantize:
        raise UserError(
            "only the encoder is loaded to compute features; leave out --low-memory and --quantize."
        )
    devices = Devices.of(options, options.precision)
    model_source = find_source(options.config or options.source, options.ema)
    flags = [*model_source.overrides, *options.overrides]
    if options.dtype not in (None, "float32"):
        flags.append(f"--model.execution.frozen_dtype={options.dtype}")
    model = describe_model(model_source.configs, flags, options.trust_class)
    require_files(model.weights)
    devices.trainer()  # refuses unknown accelerators before anything is read
    if options.out is not None:
        require_place("features", options.out)
        refuse_other_files(options.out, FEATURE_FILES, "--out")
    source = ShardFolder(options.folder).open()  # indexes shards that have no index yet
    shard_names(source.paths)  # refuses duplicates before the weights are read
    module = FeatureModule(model, options.encoder)
    module.refuse_trained(model_source.trained)
    extraction = FeatureExtraction(
        folder=options.out or home(source),
        identity={**module.identity(), "image_backend": options.image_backend},
        dtype=options.storage_dtype,
    )
    line = extraction.extract(
        source,
        module,
        batch_size=options.batch_size,
        workers=options.workers or 0,
        devices=devices,
    )
    if line:
        print(line)


@dataclass
class FeatureExtraction:
    """Extraction of features into a folder."""

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
        *,
        batch_size: int = 32,
        workers: int = 0,
        devices: Devices | None = None,
    ) -> str | None:
        """Write missing sidecars, then the manifest; return a summary in the first process.

        Raises:
            UserError: another process is writing to the folder.
        """
        if is_first_process():
            refuse_other_files(self.folder, FEATURE_FILES, "--out")
            if missing := self.missing(source):
                samples = int(sum(source.shard_sizes[shard] for shard in missing))
                size = samples * self.bytes_of(module)
                announce(f"features of {samples:,} samples", self.folder, size)
        # every rank gets here; the first one locks the folder for all
        with alone_in(self.folder) if is_first_process() else nullcontext():
            return self._extract(
                source,
                module,
                batch_size=batch_size,
                workers=workers,
                devices=devices or Devices(),
            )

    def _extract(
        self,
        source: ShardFolder,
        module: FeatureModule,
        *,
        batch_size: int,
        workers: int,
        devices: Devices,
    ) -> str | None:
        if missing := self.missing(source):
            with supervisor.handled(RESUME):
                watch_launched()
                write = WriteSidecars(self, source, missing, module.encoder.feature_shape)
                trainer = devices.trainer([write], max_devices=len(missing))
                take_over(trainer)
                read = ImageReader(
                    source, Decoder(self.identity["image_backend"]), module.image_size
                )
                data = ShardImages(read, missing, batch_size, workers)
                if hint := read.decode.hint:
                    rank_zero_info(hint)
                with ending_together():
                    trainer.predict(module, data, return_predictions=False)
            if not trainer.is_global_zero:
                return None
        return self.write_manifest(devices.precision)

    def missing(self, source: ShardFolder) -> list[int]:
        """Return the indices of shards whose features are missing or outdated."""
        sidecars = self.sidecars(source)
        return [
            shard
            for shard, samples in enumerate(source.shard_sizes)
            if samples and not finished(source.paths[shard], sidecars[shard], self.config_hash)
        ]

    def sidecars(self, source: ShardFolder) -> list[Path]:
        """Return the path of each shard's features."""
        return [self.folder / (name + ENDING) for name in shard_names(source.paths)]

    def bytes_of(self, module: FeatureModule) -> int:
        """Return the size in bytes of the features of one sample."""
        return math.prod(module.encoder.feature_shape) * DTYPES[self.dtype].itemsize

    def write_manifest(self, precision: str) -> str:
        """Write the manifest from the sidecars; return a summary of it."""
        shards, squares, errors = {}, 0.0, 0.0
        for path in sorted(self.folder.glob("*" + ENDING)):
            metadata = read_metadata(path)
            if metadata is None or metadata.get("digest") != self.config_hash:
                continue
            counts = {name: int(metadata[name]) for name in ("samples", "unreadable")}
            shards[path.name.removesuffix(ENDING)] = {
                **parse_json(metadata["shard"], path),
                **counts,
            }
            squares += float(metadata["squares"])
            errors += float(metadata["square_errors"])
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
    """Writes one sidecar for each shard as the batches of its samples arrive."""

    def __init__(
        self,
        extraction: FeatureExtraction,
        source: ShardFolder,
        shards: list[int],
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__("batch")
        self.extraction, self.shape = extraction, shape
        self.sidecars = extraction.sidecars(source)
        # taken before reading: a shard that changes meanwhile gets outdated features
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
                SidecarWriter(path, self.extraction.dtype, self.shape),
            )
            self._unreadable = 0
        self._writer.add(batch.keys, prediction)
        self._unreadable += batch.unreadable

    def on_predict_end(self, trainer: Trainer, module: FeatureModule) -> None:
        self._finish()
        trainer.strategy.barrier()  # the manifest is written after all ranks have finished

    def on_exception(self, trainer: Trainer, module: FeatureModule, exception) -> None:
        if self._writer is not None:
            self._writer.abandon()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close(
                {
                    "digest": self.extraction.config_hash,
                    "shard": json.dumps(self.stamps[self._shard]),
                    "samples": str(len(self._writer.keys)),
                    "unreadable": str(self._unreadable),
                }
            )
            self._writer = None


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a shard by sample index, as squares uint8 [3,size,size]; skips bad ones."""

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
        empty = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        pixels = stack_images(images) if images else empty
        return Images(shard, keys, pixels, len(numbers) - len(keys))


class ShardImages(LightningDataModule):
    """DataModule of the images of shards, in order; every rank takes shards of its own."""

    def __init__(self, read: ImageReader, shards: list[int], batch_size: int, workers: int) -> None:
        super().__init__()
        self.read, self.shards, self.batch_size, self.workers = read, shards, batch_size, workers

    def predict_dataloader(self) -> DataLoader:
        own = self.shards[self.trainer.global_rank :: self.trainer.world_size]
        dataset = ShardImageBatches(self.read, own, self.batch_size)
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=ignore_in_worker,
        )


class ShardImageBatches(Dataset):
    """Dataset of batches, each of images of one shard."""

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
    """Return the versions of the software that computes the features."""
    from importlib.metadata import version

    packages = ("torch", "timm", "transformers", "diffusers", "pillow")
    return {"triptych": __version__, **{name: version(name) for name in packages}}
