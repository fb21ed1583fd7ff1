"""safetensors files read and written in chunks, for conversions of tens of gigabytes.

safetensors' own `save_file` needs all tensors in memory, and its `safe_open` maps the file, whose
touched pages count as memory of the process. The format: eight bytes (little-endian length), a JSON
header of that length, the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from triptych.checkpoints.weight_checks import sound_chunks
from triptych.utils.documents import open_regular, parse_json
from triptych.utils.errors import UserError

CHUNK = 16 * 2**20  # bytes
LONGEST_HEADER = 100 * 2**20  # bytes; safetensors refuses more
# bytes of an element, in the order of the layout of safetensors
SIZES = {
    **{"U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2},
    **{"U16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1},
}
# safetensors names of torch dtypes
DTYPES = {
    **{torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.float32: "F32"},
    **{torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16"},
    **{torch.uint16: "U16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3"},
    **{torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
LAYOUT = {name: number for number, name in enumerate(SIZES)}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: dtype, shape, and access to its bytes."""

    dtype: str
    """safetensors name of the dtype, such as "BF16"."""
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes | memoryview]]
    """Function that reads the bytes in row-major order."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]

    def reshaped(self, *shape: int) -> Stored:
        """The same bytes in another shape of as many elements."""
        assert math.prod(shape) == math.prod(self.shape)
        return Stored(self.dtype, shape, self.chunks)

    def rows(self, start: int, stop: int) -> Stored:
        """Rows `start` to `stop` of the first axis."""
        row = self.nbytes // self.shape[0]

        def read() -> Iterator[bytes]:
            skip, left = start * row, (stop - start) * row
            for chunk in self.chunks():
                inside = chunk[skip : skip + left]
                skip, left = max(0, skip - len(chunk)), left - len(inside)
                yield inside
                if not left:
                    return

        return Stored(self.dtype, (stop - start, *self.shape[1:]), read)


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors of a file by name, and its metadata; reads only the header.

    Raises:
        UserError: the file is missing, is not a safetensors file, or is truncated.
    """
    try:
        with open_regular(path) as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > LONGEST_HEADER:
                raise UserError(f"{path} is no safetensors file; check what was downloaded.")
            text = file.read(start - 8)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    if size < max(start, 9):
        raise UserError(f"{path} is cut off inside its header; copy or download it again.")
    try:
        header = parse_json(text, path)
        metadata = header.pop("__metadata__", {})
        places = {
            name: (entry["dtype"], tuple(map(_natural, entry["shape"])), _ends(entry))
            for name, entry in header.items()
        }
        if not isinstance(metadata, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file; check what was downloaded.") from error
    tensors = {}
    for name, (dtype, shape, (begin, end)) in places.items():
        if dtype not in SIZES or end - begin != math.prod(shape) * SIZES[dtype]:
            raise UserError(f"{path}: the header's entry of {name} is wrong; download it again.")
        tensors[name] = Stored(dtype, shape, _reader(path, start + begin, end - begin))
    end = start + max((offsets[1] for _, _, offsets in places.values()), default=0)
    if size < end:
        raise UserError(
            f"{path} is cut off: its header promises {end} bytes and it has {size}; "
            "copy or download it again."
        )
    return tensors, metadata


def _natural(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise TypeError(f"{number!r} is no size")
    return number


def _ends(entry: dict[str, list[int]]) -> tuple[int, int]:
    begin, end = map(_natural, entry["data_offsets"])
    return begin, end


def _reader(path: Path, start: int, length: int) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        left = length
        with path.open("rb") as file:
            file.seek(start)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise UserError(f"{path} became shorter while it was read; start again.")
                left -= len(chunk)
                yield chunk

    return read


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, one chunk of one tensor at a time.

    Uses the layout of safetensors (wide elements first, then by name), so that the same tensors
    give the same bytes.

    Raises:
        UserError: a value is NaN or infinite.
    """
    names = sorted(tensors, key=lambda name: (LAYOUT[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = tensors[name].dtype, list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        stored = tensors[name]
        chunks = sound_chunks(name, stored.dtype, stored.chunks())
        assert sum(file.write(chunk) for chunk in chunks) == stored.nbytes, name
