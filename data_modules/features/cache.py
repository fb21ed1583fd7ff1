"""Features computed once, found beside the shards: whose they are, whether they still hold.

A folder of sidecars (see `sidecars`) with a manifest.json. The manifest's "identity" is all that
decides the features of an image; only a cache that agrees in every point with the model that is
trained is used. `triptych data features` makes such a folder.
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
from triptych.interfaces import Preprocessing
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
OPEN = 64  # sidecars at a time, far below any limit on open files


def config_hash(identity: dict[str, Any], dtype: str) -> str:
    """A short name for what decides the numbers in a sidecar; each carries it."""
    text = json.dumps([VERSION, identity, dtype], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache:
    """The features of a source's samples, by number. Picklable, for loader workers.

    Args:
        folder: folder with manifest.json and sidecars.
        source: the samples, open; those of shards that the folder does not know have no features.

    Raises:
        UserError: the manifest is missing or damaged, a sidecar is missing, or a shard has
            changed since its features were made.
    """

    def __init__(self, folder: Path, source: DataSource) -> None:
        self.folder, self.source = folder, source
        manifest = read_manifest(folder)
        self.identity, self.dtype = manifest["identity"], manifest["dtype"]
        self.error: float = manifest["relative_rms_error"]
        self._config_hash = config_hash(self.identity, self.dtype)
        self._ends = np.cumsum(source.shard_sizes)
        self._names = shard_names(source.paths)
        self._known = self._check(manifest["shards"])
        self._open: OrderedDict[int, FeatureShard] = OrderedDict()

    def _check(self, shards: dict[str, dict[str, int]]) -> list[bool]:
        known = []
        for path, name in zip(self.source.paths, self._names, strict=True):
            entry = shards.get(name)
            known.append(entry is not None)
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
        return known

    @property
    def complete(self) -> bool:
        """Whether every shard has features."""
        return all(self._known)

    def get(self, number: int) -> Tensor | None:
        """Features [C,h,w] of a sample, float32 or bfloat16; None where there are none."""
        shard = int(np.searchsorted(self._ends, number, "right"))
        if not self._known[shard]:
            return None
        return self._sidecar(shard).get(self.source.key(number))

    def _sidecar(self, shard: int) -> FeatureShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.folder / (self._names[shard] + SUFFIX)
        sidecar = FeatureShard(path)
        if sidecar.metadata.get("digest") != self._config_hash:
            raise UserError(
                f"{path} is not of the run that made {self.folder / MANIFEST}; "
                f"{remedy(self.source)}."
            )
        if len(self._open) >= OPEN:
            self._open.popitem(last=False)
        self._open[shard] = sidecar
        return sidecar

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}  # mapped files do not travel

    def __str__(self) -> str:
        parts = sum(self._known), len(self._known)
        shards = "" if self.complete else f", {parts[0]} of {parts[1]} shards"
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
    """Remedy for a cache that is unusable, for messages."""
    return (
        f"run `triptych data features {source.name}` with this model, or train without them: "
        "--data.features=none"
    )


def default_folder(source: DataSource) -> Path | None:
    """Folder of the features of a source: features/ in the folder of all its shards."""
    paths = getattr(source, "paths", None)
    return common_folder(paths) / "features" if paths else None


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that all shards are in, or its sub-folders."""
    folders = {path.parent for path in paths}
    if len(folders) == 1:
        return folders.pop()
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def shard_names(paths: Sequence[Path]) -> list[str]:
    """Names by which features are known, one a shard: 0.tar, or sub__0.tar in a sub-folder.

    Raises:
        UserError: two shards would have one name.
    """
    root = common_folder(paths).absolute()
    names = ["__".join(path.absolute().relative_to(root).parts) for path in paths]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"two shards are named {twice[0]}; take their folders one after the other.")
    return names


def open_feature_cache(source: DataSource, where: str = AUTO) -> FeatureCache | None:
    """The cache of an open source.

    Args:
        where: a folder, "none", or "auto": features/ beside the shards, if it is there.

    Raises:
        UserError: a folder is named and holds no features, or the cache does not hold.
    """
    if where == NONE:
        return None
    folder = default_folder(source)
    if where == AUTO:
        return FeatureCache(folder, source) if folder and (folder / MANIFEST).exists() else None
    if folder is None:
        raise UserError(
            f"{source.name} is no folder of shards, so it has no features; remove features={where}."
        )
    return FeatureCache(Path(where), source)


def open_feature_caches(
    sources: Sequence[tuple[DataSource, str]], processor: Preprocessing, image_backend: str
) -> list[FeatureCache | None]:
    """The caches that a run takes, one a source; they agree with each other and with the model.

    Args:
        sources: the run's sources, open, with where to look, see `open_feature_cache`.
        known: of the model; `processor.features` is what a cache must be of.
        image_backend: how the run reads images of samples without features.

    Raises:
        UserError: a cache does not hold, or the first point in which it disagrees.
    """
    if processor.features is None:
        for source, where in sources:
            if where not in (AUTO, NONE):
                raise UserError(
                    f"no step of this stage takes features; remove features={where} of "
                    f"{source.name}."
                )
        return [None] * len(sources)
    caches: dict[tuple[int, str], FeatureCache | None] = {}
    for source, where in sources:  # tasks may share a source, and validation that of training
        if (id(source), where) not in caches:
            caches[id(source), where] = open_feature_cache(source, where)
    found = [cache for cache in caches.values() if cache is not None]
    _agree(found, processor, image_backend)
    for cache in found:
        rank_zero_info(f"features from {cache}")
    return [caches[id(source), where] for source, where in sources]


def _agree(found: list[FeatureCache], processor: Preprocessing, image_backend: str) -> None:
    for other in found[1:]:
        if point := difference(found[0].identity, other.identity):
            raise UserError(
                f"the features in {found[0].folder} and {other.folder} are of different encoders "
                f"({point}); {remedy(other.source)}."
            )
    if not found:
        return
    if point := difference(
        found[0].identity, {**processor.features(), "image_backend": image_backend}
    ):
        raise UserError(
            f"the features in {found[0].folder} are not those of this model ({point}); "
            f"{remedy(found[0].source)}."
        )


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first point in which two identities differ, such as "pool 4 and 2"."""
    for name in sorted(
        one.keys() | other.keys(), key=lambda n: (n != "encoder", n == "weights", n)
    ):
        a, b = (json.loads(json.dumps(each.get(name))) for each in (one, other))
        if a != b:
            if name == "weights":
                a, b = (str(each)[:8] for each in (a, b))
            return f"{name} {a} and {b}"
    return None


def finished(shard: Path, path: Path, wanted: str) -> bool:
    """Whether the sidecar of a shard, at `path`, is there and holds.

    Raises:
        UserError: one is there that another encoder made, or in another dtype.
    """
    metadata = read_metadata(path)
    if metadata is None:
        return False
    if metadata.get("digest") != wanted:
        raise UserError(
            f"{path.parent} holds features of another encoder or dtype; name another folder with "
            "--out, or delete that one."
        )
    return matches_stamp(shard, parse_json(metadata.get("shard", "{}"), path))
