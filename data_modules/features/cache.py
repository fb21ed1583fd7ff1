"""Feature cache: lookup and validation.

`triptych data features` makes a folder of feature shards (see `feature_shard`) and manifest.json.
The "identity" of the manifest is everything that determines the features of an image; a cache is
used only if it equals that of the model in training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from triptych.data_modules.features.feature_shard import SUFFIX, FeatureShard, read_metadata
from triptych.data_modules.shards.identity import matches_stamp
from triptych.data_modules.sources.base import DataSource
from triptych.interfaces import INTERLEAVED_IMAGES, Preprocessing
from triptych.utils.documents import parse_json, read_json
from triptych.utils.errors import UserError

VERSION = 2  # 2: images composited over white, 16 bits scaled
FIELDS = {
    "version": int,
    "identity": dict,
    "dtype": str,
    "relative_rms_error": float | int,
    "shards": dict,
}
MANIFEST = "manifest.json"
AUTO, NONE = "auto", "none"
NAMED = "named_images"
"""Key of a shard's entry: number of images in its conversations; older ones have none of them."""
MAX_OPEN = 64  # feature shards; far below any limit on open files


def row_key(key: str, name: str) -> str:
    """Key of the features of an image in the conversation of sample `key`: its name in the shard.

    No sample has it as its own: the part of a key after the last / has no dot.
    """
    return f"{key}.{name.lower()}"


def config_hash(identity: dict[str, Any], dtype: str) -> str:
    """Hash of everything that determines the numbers in a feature shard, which stores it."""
    text = json.dumps([VERSION, identity, dtype], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache:
    """Cached features of the samples of a source, by number. Picklable, for loader workers.

    Args:
        folder: folder with manifest.json and feature shards.
        source: open source; samples of shards that are not in the manifest have no features.

    Raises:
        UserError: the manifest is missing or damaged, a feature shard is missing, or a shard has
            changed since its features were computed.
    """

    def __init__(self, folder: Path, source: DataSource) -> None:
        self.folder, self.source = folder, source
        manifest = read_manifest(folder)
        self.identity, self.dtype = manifest["identity"], manifest["dtype"]
        self.error: float = manifest["relative_rms_error"]
        self._config_hash = config_hash(self.identity, self.dtype)
        self._ends = np.cumsum(source.shard_sizes)
        self._names = shard_names(source.paths)
        self._cached = self._check(manifest["shards"])
        entries = [manifest["shards"].get(name) or {} for name in self._names]
        self._named = [NAMED in entry for entry in entries]
        self._open: OrderedDict[int, FeatureShard] = OrderedDict()

    def _check(self, shards: dict[str, dict[str, int]]) -> list[bool]:
        cached = []
        for path, name in zip(self.source.paths, self._names, strict=True):
            entry = shards.get(name)
            cached.append(entry is not None)
            if entry is None:
                continue
            if not matches_stamp(path, entry):
                raise UserError(
                    f"the shard {path} has changed since its features in {self.folder} were made; "
                    f"{remedy(self.source)}."
                )
            if not (self.folder / (name + SUFFIX)).is_file():
                raise UserError(
                    f"the features of {path} are missing in {self.folder}; {remedy(self.source)}."
                )
        return cached

    @property
    def complete(self) -> bool:
        """Whether every shard with samples has features."""
        return all(np.logical_or(self._cached, np.asarray(self.source.shard_sizes) == 0))

    def complete_for(self, task: str) -> bool:
        """Whether every shard with samples has features of the images that a task makes."""
        if task != INTERLEAVED_IMAGES:
            return self.complete
        return all(np.logical_or(self._named, np.asarray(self.source.shard_sizes) == 0))

    def get(self, number: int, name: str | None = None) -> Tensor | None:
        """Features [C,h,w] of a sample, float32 or bfloat16; None if it has none.

        Args:
            number: number of the sample in the source.
            name: name of an image that the assistant makes in the sample's conversation.
        """
        shard = int(np.searchsorted(self._ends, number, "right"))
        if not self._cached[shard]:
            return None
        key = self.source.key(number)
        return self._feature_shard(shard).get(key if name is None else row_key(key, name))

    def _feature_shard(self, shard: int) -> FeatureShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.folder / (self._names[shard] + SUFFIX)
        features = FeatureShard(path)
        if features.metadata.get("digest") != self._config_hash:
            raise UserError(
                f"{path} is not of the run that made {self.folder / MANIFEST}; "
                f"{remedy(self.source)}."
            )
        if len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)
        self._open[shard] = features
        return features

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}  # mapped files are not picklable

    def __str__(self) -> str:
        shards = f", {sum(self._cached)} of {len(self._cached)} shards"
        shards = "" if self.complete else shards
        return f"{self.folder} ({self.dtype}, relative error {self.error:.1e}{shards})"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of features.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(
            f"{path} does not exist; `triptych data features FOLDER --out {folder}` makes it."
        )
    damaged = "{} is damaged{}; delete it and run `triptych data features` again."
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(damaged.format(path, "")) from error
    if manifest.get("version", VERSION) != VERSION:
        raise UserError(
            f"{path} has version {manifest['version']}, this program reads {VERSION}; "
            "delete the folder and run `triptych data features` again."
        )
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind) or isinstance(manifest[name], bool):
            raise UserError(damaged.format(path, f" ({name!r} is of another kind)"))
    for name, entry in manifest["shards"].items():
        if not isinstance(entry, dict):
            raise UserError(damaged.format(path, f" (shard {name!r} is of another kind)"))
    return manifest


def remedy(source: DataSource) -> str:
    """Remedy for an unusable cache, for error messages."""
    return (
        f"run `triptych data features {source.name}` with this model, or train without them: "
        "--data.features=none"
    )


def default_folder(source: DataSource) -> Path | None:
    """Default folder of the features of a source: features/ in the folder of its shards."""
    paths = getattr(source, "paths", None)
    return common_folder(paths) / "features" if paths else None


def common_folder(paths: Sequence[Path]) -> Path:
    """The innermost folder that contains all shards."""
    folders = {path.parent for path in paths}
    if len(folders) == 1:
        return folders.pop()
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def shard_names(paths: Sequence[Path]) -> list[str]:
    """Names of the shards in a cache: 0.tar, or sub__0.tar in a sub-folder.

    Raises:
        UserError: two shards would have the same name.
    """
    root = common_folder(paths).absolute()
    names = ["__".join(path.absolute().relative_to(root).parts) for path in paths]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(
            f"two shards are named {repeated[0]}; take their folders one after the other."
        )
    return names


def open_feature_cache(source: DataSource, features: str = AUTO) -> FeatureCache | None:
    """Open the cache of an open source; None if it has none.

    Args:
        source: open source.
        features: folder of the cache, "none", or "auto": features/ beside the shards, if it exists.

    Raises:
        UserError: the named folder holds no features, or the cache is invalid.
    """
    if features == NONE:
        return None
    folder = default_folder(source)
    if features == AUTO:
        return FeatureCache(folder, source) if folder and (folder / MANIFEST).exists() else None
    if folder is None:
        raise UserError(
            f"{source.name} is no folder of shards, so it has no features; remove "
            f"features={features}."
        )
    return FeatureCache(Path(features), source)


def open_feature_caches(
    sources: Sequence[tuple[DataSource, str]], processor: Preprocessing, image_backend: str
) -> list[FeatureCache | None]:
    """Open the caches of a run, one per source; check them against each other and the model.

    Args:
        sources: open sources of the run, each with its `features`, see `open_feature_cache`.
        processor: preprocessing of the model, with the identity that the caches must have.
        image_backend: image backend of the run, for samples without features.

    Raises:
        UserError: a cache is invalid, or has another identity; names the first difference.
    """
    if processor.features is None:
        for source, folder in sources:
            if folder not in (AUTO, NONE):
                raise UserError(
                    f"no step of this stage takes features; remove features={folder} of "
                    f"{source.name}."
                )
        return [None] * len(sources)
    caches: dict[tuple[int, str], FeatureCache | None] = {}
    for source, folder in sources:  # tasks may share a source, and validation that of training
        if (id(source), folder) not in caches:
            caches[id(source), folder] = open_feature_cache(source, folder)
    opened = [cache for cache in caches.values() if cache is not None]
    _require_equal(opened, processor, image_backend)
    for cache in opened:
        rank_zero_info(f"features from {cache}")
    return [caches[id(source), folder] for source, folder in sources]


def _require_equal(
    opened: list[FeatureCache], processor: Preprocessing, image_backend: str
) -> None:
    for other in opened[1:]:
        if point := first_difference(opened[0].identity, other.identity):
            raise UserError(
                f"the features in {opened[0].folder} and {other.folder} are of different encoders "
                f"({point}); {remedy(other.source)}."
            )
    if not opened:
        return
    if point := first_difference(
        opened[0].identity, {**processor.features(), "image_backend": image_backend}
    ):
        raise UserError(
            f"the features in {opened[0].folder} are not those of this model ({point}); "
            f"{remedy(opened[0].source)}."
        )


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first difference of two identities, such as "pool 4 and 2"; None if they are equal."""
    for name in sorted(
        one.keys() | other.keys(), key=lambda n: (n != "encoder", n == "weights", n)
    ):
        values = [json.loads(json.dumps(identity.get(name))) for identity in (one, other)]
        if values[0] != values[1]:
            if name == "weights":
                values = [str(value)[:8] for value in values]
            return f"{name} {values[0]} and {values[1]}"
    return None


def is_finished(shard: Path, path: Path, expected_hash: str) -> bool:
    """Whether the feature shard at `path` exists and is of the shard as it is now.

    Raises:
        UserError: it is of another encoder or dtype.
    """
    metadata = read_metadata(path)
    if metadata is None:
        return False
    if metadata.get("digest") != expected_hash:
        raise UserError(
            f"{path.parent} holds features of another encoder or dtype; name another folder with "
            "--out, or delete that one."
        )
    return matches_stamp(shard, parse_json(metadata.get("shard", "{}"), path))
