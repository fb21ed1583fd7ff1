"""Checks for invalid weights, with the name of the tensor, used by everything that loads.

Floating-point weights are float64, float32, bfloat16 or float16. Smaller formats have separate
scales, and integer, boolean and complex numbers have another meaning: cast, they would be noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from triptych.utils.errors import UserError
from triptych.utils.finite import all_finite

# dtypes by the names of torch ("bfloat16") and of safetensors ("BF16"), in lower case
_KINDS = {
    "floating-point": re.compile(r"b?f(loat)?(16|32|64)"),
    "whole": re.compile(r"(int|uint|i|u)\d+"),
    "boolean": re.compile(r"bool"),
}
Bytes = bytes | memoryview
AT_ONCE = 16 * 2**20  # bytes
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def require_kind(
    name: str, stored: str | torch.dtype, expected: torch.dtype, source: object
) -> None:
    """Check that a stored dtype is of the same kind (floating-point, ...) as the expected one.

    Args:
        name: name of the tensor, for the message.
        stored: dtype of the stored tensor, from torch or by its safetensors name.
        expected: dtype of the tensor in the model.
        source: file of the tensor, for the message.

    Raises:
        UserError: the kinds differ.
    """
    if (kind := _kind(stored)) is None or kind != _kind(expected):
        raise UserError(
            f"{source}: {name} holds numbers of type {str(stored).removeprefix('torch.')}, and "
            f"the model wants {_kind(expected)} ones there (weights are float64, float32, bfloat16 "
            "or float16); take the original weights, neither quantized nor changed."
        )


def _kind(dtype: str | torch.dtype) -> str | None:
    name = str(dtype).removeprefix("torch.").lower()
    return next((kind for kind, names in _KINDS.items() if names.fullmatch(name)), None)


def require_sound(name: str, tensor: Tensor, source: object) -> None:
    """Check that a weight is finite; of a sharded one, only this rank's shard.

    Raises:
        UserError: a value is NaN or infinite.
    """
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.is_floating_point() or all_finite(local):
        return
    wrong = int((~local.detach().isfinite()).sum())
    raise UserError(
        f"{source}: {name} holds {wrong} numbers of {local.numel()} that are NaN or infinite, as "
        f"{str(local.dtype).removeprefix('torch.')}: the file is damaged, its training diverged, "
        "or float16 is too small for it; take another copy or an earlier checkpoint, or bfloat16."
    )


def require_state(given: Mapping[str, Tensor], own: Mapping[str, Tensor], source: object) -> None:
    """Apply `require_kind` and `require_sound` to the tensors of a state dict that are in `own`.

    Raises:
        UserError: a tensor is of another kind, or not finite.
    """
    for name, tensor in given.items():
        if name in own:
            require_kind(name, tensor.dtype, own[name].dtype, source)
            require_sound(name, tensor, source)


def require_floating(types: Mapping[str, str], source: object) -> None:
    """Check from headers that tensors are floating-point.

    Args:
        types: safetensors dtype of each tensor by name.
        source: file of the tensors, for the message.

    Raises:
        UserError: a tensor is not floating-point.
    """
    for name, stored in types.items():
        require_kind(name, stored, torch.float32, source)


def sound_chunks(name: str, stored: str, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
    """Check the bytes of a tensor of type `stored` chunk by chunk, and yield them.

    Raises:
        UserError: a value is NaN or infinite.
    """
    dtype: Any = _TYPES.get(stored)
    rest = b""  # incomplete value at the end of a chunk
    for chunk in chunks:
        if dtype is not None:
            view = memoryview(rest + bytes(chunk) if rest else chunk)
            end = len(view) // dtype.itemsize * dtype.itemsize
            for start in range(0, end, AT_ONCE):
                numbers = bytearray(view[start : min(start + AT_ONCE, end)])  # writable for torch
                require_sound(name, torch.frombuffer(numbers, dtype=dtype), "the weights to write")
            rest = bytes(view[end:])
        yield chunk
