"""`triptych data features`: the frozen encoder over shards, once, by Lightning's predict loop.

Each process takes whole shards and writes one sidecar a shard; what is finished is not done again,
so an interrupted run goes on, and several machines may each take a part of the shards.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triptych.contracts import UserError
from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.decode import Decoder, DecodeWay, PictureError
from triptych.data_modules.features import MANIFEST, VERSION, digest, finished, home, stamp
from triptych.data_modules.sidecars import DTYPES, ENDING, SidecarWriter, read_metadata
from triptych.modules.features import FeatureModule, Pictures
from triptych.pipeline import describe_model
from triptych.version import __version__

TINY = ["conf/model/tiny.yaml"]


def features(arguments: list[str]) -> None:
    """Image features of shards, computed once: triptych data features FOLDER --config MODEL.yaml"""
    parser = argparse.ArgumentParser(
        prog="triptych data features",
        description=features.__doc__,
        epilog="Training finds FOLDER/features by itself. Any --model.x=y flag of `triptych fit` "
        "may follow, such as --model.weights.encoder=FILE.",
    )
    parser.add_argument("source", metavar="FOLDER", help="of shards; or one shard, or a pattern")
    parser.add_argument("--out", type=Path, help="folder; default FOLDER/features")
    parser.add_argument(
        "--config", action="append", metavar="YAML", help=f"model files; default {TINY[0]}"
    )
    parser.add_argument(
        "--objective",
        choices=["clip", "vae"],
        default="clip",
        help="whose features: the image encoder's (default), or the VAE's latents",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="bf16",
        help="of the numbers on disk; the manifest states the error",
    )
    parser.add_argument(
        "--decode",
        choices=get_args(DecodeWay),
        default=Decoder().way,
        help="as the training runs will decode; default %(default)s",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures, of one process")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes, of each")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or CPU processes")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    parser.add_argument(
        "--precision", default="32-true", help="to compute in: 32-true (default), bf16-mixed, ..."
    )
    parsed, flags = parser.parse_known_args(arguments)
    unknown = [flag for flag in flags if not flag.startswith("--model.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in ("batch_size", "devices"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")

    source = ShardFolder(parsed.source).open()
    refuse_equal_names(source.paths)
    module = FeatureModule(describe_model(parsed.config or TINY, flags), parsed.objective)
    made = Making(
        folder=parsed.out or home(source),
        identity={**module.identity(), "decode": parsed.decode},
        dtype=parsed.dtype,
    )
    line = made.extract(
        source,
        module,
        parsed.batch_size,
        parsed.workers,
        parsed.devices,
        parsed.accelerator,
        parsed.precision,
    )
    if line:
        print(line)


@dataclass
class Making:
    """A folder of features, as it is made."""

    folder: Path
    identity: dict[str, Any]
    dtype: str

    @property
    def digest(self) -> str:
        return digest(self.identity, self.dtype)

    def extract(
        self,
        source: ShardFolder,
        module: FeatureModule,
        batch_size: int = 32,
        workers: int = 0,
        devices: int = 1,
        accelerator: str = "auto",
        precision: str = "32-true",
    ) -> str | None:
        """Write what is missing, then the manifest; a line about it, in the first process."""
        todo = [
            shard
            for shard, samples in enumerate(source.shard_sizes)
            if samples and not finished(source.paths[shard], self.folder, self.digest)
        ]
        if todo:
            devices = min(devices, len(todo))  # whoever has no shard would not wait for the others
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy="ddp" if devices > 1 else "auto",
                precision=precision,
                callbacks=[WriteSidecars(self, source, todo, module.encoder.feature_shape)],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            read = PictureReader(source, Decoder(self.identity["decode"]), module.picture_size)
            data = ShardPictures(read, todo, batch_size, workers)
            trainer.predict(module, data, return_predictions=False)
            if not trainer.is_global_zero:
                return None
        return self.write_manifest(precision)

    def write_manifest(self, precision: str) -> str:
        """Take together what the sidecars say; returns a line about it."""
        shards, squares, errors = {}, 0.0, 0.0
        for path in sorted(self.folder.glob("*" + ENDING)):
            said = read_metadata(path)
            if said is None or said.get("digest") != self.digest:
                continue
            counts = {name: int(said[name]) for name in ("samples", "unreadable")}
            shards[path.name.removesuffix(ENDING)] = {**json.loads(said["shard"]), **counts}
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
        partial = self.folder / (MANIFEST + ".partial")
        partial.write_text(json.dumps(manifest, indent=1))
        partial.replace(self.folder / MANIFEST)
        return (
            f"{self.folder}: features of {samples} samples in {len(shards)} shards, {self.dtype}, "
            f"relative RMS error {error:.1e}; {unreadable} pictures could not be read"
        )


class WriteSidecars(BasePredictionWriter):
    """One sidecar a shard, as the batches of its samples come in."""

    def __init__(
        self, made: Making, source: ShardFolder, shards: list[int], shape: tuple[int, int, int]
    ) -> None:
        super().__init__("batch")
        self.made, self.source, self.shape = made, source, shape
        # before they are read: one that changes meanwhile is then found to be another
        self.stamps = {shard: stamp(source.paths[shard]) for shard in shards}
        self._shard, self._writer, self._unreadable = -1, None, 0

    def write_on_batch_end(
        self, trainer, module, prediction: Tensor, indices, batch: Pictures, *numbers: int
    ) -> None:
        if batch.shard != self._shard:
            self._finish()
            path = self.made.folder / (self.source.paths[batch.shard].name + ENDING)
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
                    "digest": self.made.digest,
                    "shard": json.dumps(self.stamps[self._shard]),
                    "samples": str(len(self._writer.keys)),
                    "unreadable": str(self._unreadable),
                }
            )
            self._writer = None


@dataclass(frozen=True)
class PictureReader:
    """A shard's pictures by number, as squares uint8 [3,size,size]; those that can be read."""

    source: ShardFolder
    decode: Decoder
    size: int

    def __call__(self, shard: int, numbers: range) -> Pictures:
        keys, pictures = [], []
        for number in numbers:
            try:
                pictures += self.decode(self.source.image(number), self.size)
            except (BadSample, PictureError):
                continue
            keys.append(self.source.key(number))
        none = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        pixels = torch.stack(pictures) if pictures else none
        return Pictures(shard, keys, pixels, len(numbers) - len(keys))


class ShardPictures(LightningDataModule):
    """The pictures of shards, in order; every process takes shards of its own."""

    def __init__(
        self, read: PictureReader, shards: list[int], batch_size: int, workers: int
    ) -> None:
        super().__init__()
        self.read, self.shards, self.batch_size, self.workers = read, shards, batch_size, workers

    def predict_dataloader(self) -> DataLoader:
        mine = self.shards[self.trainer.global_rank :: self.trainer.world_size]
        dataset = PictureBatches(self.read, mine, self.batch_size)
        return DataLoader(dataset, batch_size=None, num_workers=self.workers)


class PictureBatches(Dataset):
    """Item k is a batch of the pictures of one shard."""

    def __init__(self, read: PictureReader, shards: list[int], batch_size: int) -> None:
        self.read = read
        ends = [0, *read.source.shard_sizes.cumsum().tolist()]
        self.batches = [
            (shard, range(first, min(first + batch_size, ends[shard + 1])))
            for shard in shards
            for first in range(ends[shard], ends[shard + 1], batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Pictures:
        return self.read(*self.batches[index])


def refuse_equal_names(paths: list[Path]) -> None:
    """Sidecars are named after their shards."""
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two shards are named {name}; take their folders one after the other.")


def versions() -> dict[str, str]:
    """What made the features, for the record."""
    from importlib.metadata import version

    packages = ("torch", "timm", "transformers", "diffusers", "pillow")
    return {"triptych": __version__, **{name: version(name) for name in packages}}
