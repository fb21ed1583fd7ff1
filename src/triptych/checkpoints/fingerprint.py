"""A name for the numbers of a part, read from the weight files, without building the part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from triptych.checkpoints.weight_files import WeightFiles, _open, find_all, label_of
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError

REMEMBERED = 64 * 2**20  # bytes; smaller files are read in a fraction of a second, every time


def weights_hash(sources: WeightFiles, beginning: str) -> str:
    """SHA-256 over the tensors of `sources` whose full names start with `beginning`.

    It depends on the numbers, not on how they are stored: neither on file names, nor on which
    tensors share a file, nor on whether float16 or float32 holds the same values. As when weights
    are loaded, the last file that has a tensor counts.

    Raises:
        UserError: a file is missing, or none has such a tensor.
    """
    digests: dict[str, str] = {}
    for path in find_all(sources).values():
        digests |= _digests(path, beginning)
    if not digests:
        raise UserError(
            f"no weight file holds tensors of {beginning.rstrip('.')}; name one with "
            f"--model.weights.{label_of(beginning)}=FILE."
        )
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(path: Path, beginning: str) -> dict[str, str]:
    """Name after `beginning` -> digest, of each such tensor in a file; remembered for big files."""
    stat = path.stat()
    if stat.st_size < REMEMBERED:
        return _read(path, beginning)
    known = {"path": str(path.resolve()), "beginning": beginning}
    known |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    place = hashlib.sha256(f"{known['path']}\n{beginning}".encode()).hexdigest()
    note = cache_folder() / "fingerprints" / f"{place}.json"
    try:
        found = read_json(note)
        if found["of"] == known:
            return found["digests"]
    except (OSError, ValueError, KeyError):
        pass  # not noted yet, or not readable: it is only a note
    digests = _read(path, beginning)
    try:
        with replacing(note, durable=False) as file:
            file.write(json.dumps({"of": known, "digests": digests}).encode())
    except OSError:
        pass  # nowhere to note it: it is computed again next time
    return digests


def _read(path: Path, beginning: str) -> dict[str, str]:
    with _open(path) as file:
        names = [name for name in file.names if name.startswith(beginning)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing frees the GIL
            digests: Iterable[str] = pool.map(
                lambda name: tensor_hash(file.get_tensor(name)), names
            )
            return {
                name.removeprefix(beginning): each
                for name, each in zip(names, digests, strict=True)
            }


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of shape and numbers, as float32 if they are floating-point ones."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    state = hashlib.sha256(str(list(tensor.shape)).encode())
    state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def cache_folder() -> Path:
    """Cache folder for files that can be made again: $XDG_CACHE_HOME/triptych."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
