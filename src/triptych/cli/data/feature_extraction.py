"""`triptych data features`: the frozen encoder over shards by Lightning's predict loop.

Each process takes whole shards and writes one feature shard for each; finished shards are skipped,
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

from lightning import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from triptych import __version__
from triptych.checkpoints import require_files
from triptych.checkpoints.run_folder import is_first_process
from triptych.cli.data.shard_images import ImageReader, ShardImages, images_of_first
from triptych.cli.predict import RESUME, Devices
from triptych.data_modules import ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.features.cache import (
    MANIFEST,
    NAMED,
    VERSION,
    config_hash,
    default_folder,
    is_finished,
    shard_names,
)
from triptych.data_modules.features.feature_shard import (
    DTYPES,
    SUFFIX,
    FeatureShardWriter,
    read_metadata,
)
from triptych.data_modules.shards.identity import file_stamp
from triptych.inference.loading import describe_model, find_source
from triptych.modules.feature_extraction import FeatureModule, Images
from triptych.training.ranks import ending_together, take_over, watch_launched
from triptych.utils.atomic_write import alone_in, replacing
from triptych.utils.disk_usage import announce, refuse_other_files, require_place
from triptych.utils.documents import parse_json
from triptych.utils.errors import UserError
from triptych.utils.signals import supervisor

# Names of the files in a folder of features; hidden files are ignored.
OWN_FILES = re.compile(rf"({re.escape(MANIFEST)}|.*{re.escape(SUFFIX)})(\.partial)?|\..*")


def extract(options: argparse.Namespace) -> None:
    """Run `triptych data features`.

    Args:
        options: parsed flags, see `features`.

    Raises:
        UserError: the model or the device does not exist, or a flag has no effect.
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
    devices.trainer()  # refuses unavailable devices before anything is read
    if options.out is not None:
        require_place("features", options.out)
        refuse_other_files(options.out, OWN_FILES, "--out")
    source = ShardFolder(options.folder).open()  # builds missing indexes
    shard_names(source.paths)  # refuses equal names before the weights are read
    module = FeatureModule(model, options.encoder)
    module.refuse_trained(model_source.trained)
    features = FeatureFolder(
        folder=options.out or default_folder(source),
        identity={**module.identity(), "image_backend": options.image_backend},
        dtype=options.storage_dtype,
    )
    line = features.extract(
        source,
        module,
        batch_size=options.batch_size,
        workers=options.workers or 0,
        devices=devices,
    )
    if line:
        print(line)


@dataclass
class FeatureFolder:
    """An output folder of cached features."""

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
        """Write missing feature shards, then the manifest.

        Returns a line about the folder in the first process.

        Raises:
            UserError: another process is writing to the folder.
        """
        if is_first_process():
            refuse_other_files(self.folder, OWN_FILES, "--out")
            if shards := self.missing(source):
                samples = int(sum(source.shard_sizes[shard] for shard in shards))
                rows = sum(source.shard_sizes[n] * images_of_first(source, n) for n in shards)
                size = int(rows) * self.bytes_of(module)
                announce(f"features of {samples:,} samples", self.folder, size)
        # one process per device runs this; the first one locks the folder for all
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
        if shards := self.missing(source):
            with supervisor.handled(RESUME):
                watch_launched()
                write = WriteFeatureShards(self, source, shards, module.encoder.feature_shape)
                trainer = devices.trainer([write], max_devices=len(shards))
                take_over(trainer)
                read = ImageReader(
                    source, Decoder(self.identity["image_backend"]), module.image_size
                )
                data = ShardImages(read, shards, batch_size, workers)
                if hint := read.decode.hint:
                    rank_zero_info(hint)
                with ending_together():
                    trainer.predict(module, data, return_predictions=False)
                    # the manifest is of all ranks; here, since one without shards runs no hook
                    trainer.strategy.barrier()
            if not trainer.is_global_zero:
                return None
        return self.write_manifest(devices.precision)

    def missing(self, source: ShardFolder) -> list[int]:
        """Numbers of the shards whose features are missing or outdated, or lack named images."""
        paths = self.feature_shards(source)
        return [
            shard
            for shard, samples in enumerate(source.shard_sizes)
            if samples
            and (
                not is_finished(source.paths[shard], paths[shard], self.config_hash)
                or (NAMED not in read_metadata(paths[shard]) and images_of_first(source, shard) > 1)
            )
        ]

    def feature_shards(self, source: ShardFolder) -> list[Path]:
        """Path of the feature shard of each shard."""
        return [self.folder / (name + SUFFIX) for name in shard_names(source.paths)]

    def bytes_of(self, module: FeatureModule) -> int:
        """Return the size in bytes of the features of one sample."""
        return math.prod(module.encoder.feature_shape) * DTYPES[self.dtype].itemsize

    def write_manifest(self, precision: str) -> str:
        """Write the manifest from the feature shards; return a line about it."""
        shards, squares, errors = {}, 0.0, 0.0
        for path in sorted(self.folder.glob("*" + SUFFIX)):
            metadata = read_metadata(path)
            if metadata is None or metadata.get("digest") != self.config_hash:
                continue
            names = [n for n in ("samples", "unreadable", NAMED) if n in metadata]
            counts = {name: int(metadata[name]) for name in names}
            shards[path.name.removesuffix(SUFFIX)] = {
                **parse_json(metadata["shard"], path),
                **counts,
            }
            squares += float(metadata["squares"])
            errors += float(metadata["square_errors"])
        error = (errors / squares) ** 0.5 if squares else 0.0
        samples, unreadable = (
            sum(each[name] for each in shards.values()) for name in ("samples", "unreadable")
        )
        named = sum(each.get(NAMED, 0) for each in shards.values())
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
        images = f" and {named} images of conversations" if named else ""
        return (
            f"{self.folder}: features of {samples} samples{images} in {len(shards)} shards, "
            f"{self.dtype}, relative RMS error {error:.1e}; {unreadable} images could not be read"
        )


class WriteFeatureShards(BasePredictionWriter):
    """Writes one feature shard per shard, batch by batch."""

    def __init__(
        self,
        folder: FeatureFolder,
        source: ShardFolder,
        shards: list[int],
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__("batch")
        self.folder, self.paths, self.shape = folder, folder.feature_shards(source), shape
        # taken before the shards are read, so that a change during the run is detected
        self.stamps = {shard: file_stamp(source.paths[shard]) for shard in shards}
        self._shard, self._writer, self._unreadable, self._named = -1, None, 0, 0

    def write_on_batch_end(
        self, trainer, module, prediction: Tensor, indices, batch: Images, *numbers: int
    ) -> None:
        if batch.shard != self._shard:
            self._finish()
            path = self.paths[batch.shard]
            self._shard, self._writer = (
                batch.shard,
                FeatureShardWriter(path, self.folder.dtype, self.shape),
            )
            self._unreadable = self._named = 0
        self._writer.add(batch.keys, prediction)
        self._unreadable += batch.unreadable
        self._named += batch.named

    def on_predict_end(self, trainer: Trainer, module: FeatureModule) -> None:
        self._finish()

    def on_exception(self, trainer: Trainer, module: FeatureModule, exception) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close(
                {
                    "digest": self.folder.config_hash,
                    "shard": json.dumps(self.stamps[self._shard]),
                    "samples": str(len(self._writer.keys) - self._named),
                    "unreadable": str(self._unreadable),
                    NAMED: str(self._named),
                }
            )
            self._writer = None


def versions() -> dict[str, str]:
    """Versions of the software that computes features, for the manifest."""
    from importlib.metadata import version

    packages = ("torch", "timm", "transformers", "diffusers", "pillow")
    return {"triptych": __version__, **{name: version(name) for name in packages}}
