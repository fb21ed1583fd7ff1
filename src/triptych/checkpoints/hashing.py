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

REMEMBERED = 64 * 2**20  # bytes; smaller files are read in a fraction of a second, every time
VALUES = 4096  # of a tensor, at most: a step of training changes some of them


def weights_hash(sources: WeightFiles, beginning: str) -> str:
    """SHA-256 over the tensors of `sources` whose full names start with `beginning`.

    It depends on the numbers, not on how they are stored: neither on file names, nor on which
    tensors share a file, nor on whether float16 or float32 holds the same values. As when weights
    are loaded, the last file that has a tensor counts.

    Raises:
        UserError: a file is missing, or none has such a tensor.
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
    """Name after `beginning` -> `tensor_hash`, of such tensors of a file; cached for big files."""
    stat = path.stat()
    if stat.st_size < REMEMBERED:
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
        pass  # not cached yet, or not readable: it can be computed again
    hashes = _read(path, beginning)
    try:
        with replacing(cache, durable=False) as file:
            file.write(json.dumps({"of": key, "hashes": hashes}).encode())
    except OSError:
        pass  # no cache folder: the hashes are computed again next time
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
    """SHA-256 of shape and numbers, as float32 if they are floating-point ones."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    state = hashlib.sha256(str(list(tensor.shape)).encode())
    state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def model_hash(module: nn.Module) -> str:
    """Hash of a model in memory: names, shapes, dtypes and evenly spaced values of its tensors.

    16 hexadecimal digits. It takes a second where reading every value of an 8B model takes a
    minute; weights that were changed on purpose in a few places may have the same.
    """
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // VALUES)].cpu().contiguous()
        state.update(some.view(torch.uint8).numpy())
    return state.hexdigest()[:16]


def cache_folder() -> Path:
    """Cache folder for files that can be made again: $XDG_CACHE_HOME/triptych."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
