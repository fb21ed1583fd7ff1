"""Distributed checkpoints: a folder with a file per rank in torch's format, read as data only.

torch unpickles the index `.metadata` and every non-tensor without restrictions, and a pickle can
call any function. Here the index is unpickled with an allowlist of classes, and the rest is read by
torch's reader with `weights_only`.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint import FileSystemReader, metadata, state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem

from triptych.utils.documents import MIB, read_bytes
from triptych.utils.errors import UserError

INDEX = ".metadata"
REST = "meta.pt"
"""File with the non-tensor data of a checkpoint."""

_INDEX_BYTES = 256 * MIB
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),  # looks a name up in a table
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def read_into(path: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place; collective.

    Raises:
        UserError: the folder is not a checkpoint, is damaged, does not fit, or has more than data.
    """
    _load(path, state, _DataPlanner())


def read_full_state(path: Path, key: str) -> dict[str, Any]:
    """Read the unsharded state stored under `key`, in this process only.

    Raises:
        UserError: the folder is not a checkpoint, is damaged, or has more than data.
    """
    state: dict[str, Any] = {}
    _load(path, state, _WholeDataPlanner(keys={key}), no_dist=True)
    return state


def load_data(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a file of `torch.save` on the CPU, as data only.

    Raises:
        UserError: the file does not exist, is truncated, or has more than data.
    """
    if not path.is_file():  # reading a pipe would block
        raise UserError(f"{path} is no file of a checkpoint; check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no checkpoint, or holds code beside data, and is not opened."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path} is no checkpoint or is cut off; take the one before it, or --ckpt_path=last."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of a training run.")
    return content


class _Reader(FileSystemReader):
    """torch's reader with the index from `read_index`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index = read_index(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        self.index.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return self.index


class _DataPlanner(DefaultLoadPlanner):
    """torch's planner, which reads non-tensors as data: numbers, texts, lists of them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        data = torch.load(value, map_location="cpu", weights_only=True)
        buffer = io.BytesIO()
        torch.save(data, buffer)  # torch unpickles only what is written here
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _WholeDataPlanner(_DataPlanner, _EmptyStateDictLoadPlanner):
    """The same for unsharded tensors, into an empty state."""


def _load(path: Path, state: dict[str, Any], planner: Any, no_dist: bool = False) -> None:
    reader = _Reader(path)
    try:
        state_dict_loader._load_state_dict(
            state, storage_reader=reader, planner=planner, no_dist=no_dist
        )
    except CheckpointException as error:  # has the errors of all ranks
        cause = next(iter(error.failures.values()))[0]
        reason = " ".join(str(cause).split())[:300]
        raise UserError(
            f"the checkpoint {path} is damaged, holds more than data, or is of another model "
            f"({reason}); take another one."
        ) from error


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_index(path: Path) -> metadata.Metadata:
    """Read the index of the folder `path`: file and position of each tensor.

    Raises:
        UserError: the index is missing, or refers to anything but tensors in files of that folder.
    """
    place = path / INDEX
    content = read_bytes(place, _INDEX_BYTES)
    try:
        index = _IndexUnpickler(io.BytesIO(content)).load()
        _check(index, path)
    except Exception as error:  # a malicious pickle can raise any exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{place} is no index of a checkpoint, or holds code beside data ({reason}); it is "
            "not opened."
        ) from error
    return index


def _check(index: metadata.Metadata, folder: Path) -> None:
    """Refuse an index that refers to files outside of the folder, or to more data than there is."""
    if not isinstance(index, metadata.Metadata):
        raise ValueError("it is no Metadata")
    names = {_file_of(info) for info in index.storage_data.values()}
    for name in names:
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise ValueError(f"{name} is no file of the folder")
    size = sum((folder / name).stat().st_size for name in names)
    for key, each in index.state_dict_metadata.items():
        if isinstance(each, metadata.TensorStorageMetadata):
            size -= math.prod(each.size) * each.properties.dtype.itemsize
        elif not isinstance(each, metadata.BytesStorageMetadata):
            raise ValueError(f"{key} is no tensor")
        if size < 0:
            raise ValueError("its tensors are larger than its files")
    places = index.planner_data or {}
    for steps in places.values():  # numbers are positions in lists
        if not all(isinstance(s, str) or 0 <= s <= len(places) for s in steps):
            raise ValueError(f"{steps} is no place in a state")


def _file_of(info: _StorageInfo) -> str:
    name = info.relative_path
    if not isinstance(info, _StorageInfo) or name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"{name} is outside of the folder")
    if info.transform_descriptors:
        raise ValueError(f"{name} is compressed")
    if info.offset < 0 or info.length < 0:
        raise ValueError(f"{name} is read at {info.offset}")
    return name
