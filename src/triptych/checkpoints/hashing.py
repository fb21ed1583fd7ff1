"""Hashes of weights: of the files of a part, of one tensor, and of a model in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from triptych.checkpoints.weight_files import WeightFiles, _open, find_all, label_of
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError

CACHED_BYTES = 64 * 2**20  # smallest file with cached hashes; smaller ones are read quickly
VALUES = 4096  # maximum number of hashed values per tensor; training steps change some of them


def weights_hash(sources: WeightFiles, beginning: str) -> str:
    """SHA-256 over the tensors of `sources` whose full names start with `beginning`.

    Depends only on the values: not on file names, the distribution of tensors over files, or the
    precision, float16 or float32, that stores the same values. As in loading, the last file with a
    tensor is used.

    Raises:
        UserError: a file is missing, or no file has such a tensor.
    """
    hashes: dict[str, str] = {}
    for path in find_all(sources).values():
        hashes |= _tensor_hashes(path, beginning)
    if not hashes:
        raise UserError(
            f"no weight file holds tensors of {beginning.rstrip('.')}; name one with "
            f"--model.weights.{label_of(beginning)}=FILE."
        )
    text = "".join(f"{name} {each}\n" for name, each in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_hashes(path: Path, beginning: str) -> dict[str, str]:
    """`tensor_hash` of a file's tensors by name after `beginning`; cached for large files."""
    stat = path.stat()
    if stat.st_size < CACHED_BYTES:
        return _read(path, beginning)
    key = {"path": str(path.resolve()), "beginning": beginning}
    key |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = hashlib.sha256(f"{key['path']}\n{beginning}".encode()).hexdigest()
    cache = cache_folder() / "tensor_hashes" / f"{name}.json"
    try:
        cached = read_json(cache)
        if cached["of"] == key:
            return cached["hashes"]
    except (OSError, ValueError, KeyError):
        pass  # not cached yet, or unreadable
    hashes = _read(path, beginning)
    try:
        with replacing(cache, durable=False) as file:
            file.write(json.dumps({"of": key, "hashes": hashes}).encode())
    except OSError:
        pass  # no cache folder: computed again next time
    return hashes


def _read(path: Path, beginning: str) -> dict[str, str]:
    with _open(path) as file:
        names = [name for name in file.names if name.startswith(beginning)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing frees the GIL
            hashes: Iterable[str] = pool.map(lambda name: tensor_hash(file.get_tensor(name)), names)
            return {
                name.removeprefix(beginning): each for name, each in zip(names, hashes, strict=True)
            }


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of shape and values; floating-point values are hashed as float32."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    state = hashlib.sha256(str(list(tensor.shape)).encode())
    state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def model_hash(module: nn.Module) -> str:
    """Hash of a model in memory: names, shapes, dtypes and evenly spaced values of its tensors.

    16 hexadecimal digits. Takes a second, while hashing every value of an 8B model takes a minute;
    weights that differ in a few values may have the same hash.
    """
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // VALUES)].cpu().contiguous()
        state.update(some.view(torch.uint8).numpy())
    return state.hexdigest()[:16]


def cache_folder() -> Path:
    """Cache folder, $XDG_CACHE_HOME/triptych."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
