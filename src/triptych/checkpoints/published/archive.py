"""Opening of third-party weight files: one file, several with an index, or torch's pickle."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.key_prefixes import plain_names, state_dict_in
from triptych.checkpoints.published.safetensors_stream import CHUNK, SIZES, Stored, read_header
from triptych.utils.documents import open_regular, read_json
from triptych.utils.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TORCH_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}


@dataclass
class Archive:
    """Tensors of a set of weight files, and their distribution over the files."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """File name by key, the `weight_map` of an index."""
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """Metadata of each file by its name."""
    index: str | None = None
    """Name of the index; None if there is a single file."""
    paths: list[Path] = field(default_factory=list)

    def plain(self, known: Callable[[str], bool]) -> Archive:
        """Copy with names without the prefixes of wrappers; see `plain_names`."""
        names = plain_names(self.tensors, known, self.paths[0])
        tensors = {names[key]: stored for key, stored in self.tensors.items()}
        return replace(self, tensors=tensors, files={names[k]: f for k, f in self.files.items()})

    def layout(self) -> dict[str, Any]:
        """Metadata that an export needs to write the same files, for JSON."""
        return {"files": self.files, "metadata": self.metadata, "index": self.index}


def fetch(source: str) -> Path:
    """Resolve a path, or download a hub id.

    Raises:
        UserError: the source is neither, or the download failed.
    """
    path = Path(source)
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{source} does not exist and is no hub id (OWNER/NAME); check the path.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source))
    except (OSError, ValueError) as error:  # offline, unknown, gated: all of the hub's own errors
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{source} is no folder here and could not be downloaded from the hub ({reason}); "
            "download it where there is a network, and name the folder."
        ) from error


def open_folder(folder: Path, stems: Sequence[tuple[str, str]]) -> Archive:
    """Open the weights of a folder, by the first existing one of several names.

    Args:
        folder: the folder.
        stems: pairs of file names: an index of several files, and a single file.

    Raises:
        UserError: no such file exists, or a file is missing, truncated or disagrees with the index.
    """
    for index, single in stems:
        if (folder / index).is_file():
            return _open_indexed(folder, index)
        if (folder / single).is_file():
            return open_file(folder / single)
    names = ", ".join(name for pair in stems for name in pair)
    raise UserError(f"{folder} holds no weights ({names}); download it again.")


def _open_indexed(folder: Path, index: str) -> Archive:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / index} names no weights; download it again.")
    if strange := [name for name in weight_map.values() if not isinstance(name, str)]:
        raise UserError(f"{folder / index} names {strange[0]!r:.60} as a file; download it again.")
    archive = Archive(index=index)
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".."):
            raise UserError(f"{folder / index} names {name}, which is outside of its folder.")
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / index} names {name}, which is not there; download that file too."
            )
        single = open_file(folder / name)
        archive.tensors |= single.tensors
        archive.files |= single.files
        archive.metadata |= single.metadata
        archive.paths += single.paths
    lost = [key for key, name in weight_map.items() if archive.files.get(key) != name]
    if lost:
        raise UserError(
            f"{folder / index} names {lost[0]} in {weight_map[lost[0]]}, which does not hold it "
            f"({len(lost)} such tensors); download both again."
        )
    archive.paths.append(folder / index)
    return archive


def open_file(path: Path) -> Archive:
    """Open a single file: safetensors, or of torch.save by its suffix (.bin, .pt, .pth)."""
    if path.suffix in (".bin", ".pt", ".pth"):
        tensors, metadata = _TorchFile(path).stored(), {}
    else:
        tensors, metadata = read_header(path)
    return Archive(tensors, dict.fromkeys(tensors, path.name), {path.name: metadata}, paths=[path])


class _TorchFile:
    """A memory-mapped file of torch.save, reopened from time to time to release its pages."""

    MAX_TOUCHED = 2**30  # bytes: touched pages of a mapping count as memory of the process

    def __init__(self, path: Path) -> None:
        self.path, self.touched = path, 0
        self.tensors = self._open()

    def _open(self) -> dict[str, torch.Tensor]:
        path = self.path
        open_regular(path).close()
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors, maybe code, and is not opened; "
                "take the safetensors file of these weights."
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            raise UserError(
                f"{path} is cut off or in an old format of torch.save; download it again, or load "
                "and save it with a current torch."
            ) from error
        content = state_dict_in(content, path)
        if not isinstance(content, dict) or not all(
            isinstance(value, torch.Tensor) for value in content.values()
        ):
            raise UserError(f"{path} is no dictionary of tensors; take only the weights.")
        return content

    def stored(self) -> dict[str, Stored]:
        stored = {}
        for name, tensor in self.tensors.items():
            if tensor.dtype not in _TORCH_NAMES:
                raise UserError(f"{self.path}: {name} is of type {tensor.dtype}, not of a weight.")
            dtype = _TORCH_NAMES[tensor.dtype]
            stored[name] = Stored(dtype, tuple(tensor.shape), lambda name=name: self._chunks(name))
        return stored

    def _chunks(self, name: str) -> Iterator[bytes]:
        if self.touched > self.MAX_TOUCHED:
            self.tensors, self.touched = {}, 0
            self.tensors = self._open()
        flat = self.tensors[name].contiguous().reshape(-1)
        self.touched += flat.numel() * flat.element_size()
        step = CHUNK // SIZES[_TORCH_NAMES[flat.dtype]]
        for start in range(0, flat.numel(), step):
            yield flat[start : start + step].view(torch.uint8).numpy().tobytes()
