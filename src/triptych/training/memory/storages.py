"""Dispatch mode that counts storages as they appear and disappear."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

UNIT = 512
"""Bytes to which torch's CUDA allocator rounds a block."""


def rounded(size: int) -> int:
    """Return `size` in bytes, rounded up as torch's CUDA allocator does."""
    return -(-size // UNIT) * UNIT


class StorageCounter(TorchDispatchMode):
    """Counts the storages of all tensors that operations return, until they are freed.

    torch's own MemTracker puts hooks on frozen parameters, which raises, and refuses modules that
    are called twice in a step, such as the language model here. Works on real and fake tensors.

    Args:
        record: called when a storage appears or disappears, with the change in bytes and whether
            the storage is independent of the batch size: computed from parameters alone, such as
            weights cast by autocast, or a gradient, see `constant`.
        device: whose storages are counted; None is all devices.
    """

    def __init__(
        self,
        record: Callable[[int, bool], None] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._device = device
        self.now = self.peak = 0
        self._record = record or (lambda change, constant: None)
        self._sizes: dict[int, int] = {}  # by the storage's address as a Python object
        self._ignored: set[int] = set()
        self._constant: set[int] = set()
        self.constant_shapes: frozenset[tuple[int, ...]] = frozenset()
        """Shapes of tensors whose size does not depend on the batch, nor do transposed ones: in a
        backward pass, those of the parameters, as their gradients are computed from the batch."""

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out the storages of these tensors, such as parameters."""
        self._ignored |= {id(tensor.untyped_storage()) for tensor in tensors}

    def constant(self, tensor: Tensor) -> None:
        """Note that the size of this tensor's storage does not depend on the batch size."""
        key = id(tensor.untyped_storage())
        if key in self._sizes and key not in self._constant:
            self._record(-self._sizes[key], False)
            self._record(self._sizes[key], True)
            self._constant.add(key)

    def add(self, tensor: Tensor, constant: bool = False) -> None:
        """Count the storage of `tensor`, once; of a sharded one, this rank's shard."""
        if isinstance(tensor, DTensor):  # its own storage says the size of the whole
            tensor = tensor._local_tensor
        if self._device is not None and tensor.device.type != self._device.type:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes or key in self._ignored:
            return
        # the storage's Python object lives as long as the storage, so its id is unique
        weakref.finalize(storage, self._free, key)
        self._sizes[key] = rounded(storage.size())
        if constant:
            self._constant.add(key)
        self._change(self._sizes[key], constant)

    def _free(self, key: int) -> None:
        self._change(-self._sizes.pop(key), key in self._constant)
        self._constant.discard(key)

    def _change(self, change: int, constant: bool) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)
        self._record(change, constant)

    def _is_constant(self, tensor: Tensor) -> bool:
        key = id(tensor.untyped_storage())
        return key in self._ignored or key in self._constant

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Take in the new size of a storage: FSDP2 frees what it gathered by resizing it to 0."""
        key = id(storage)
        if key in self._sizes:
            change = rounded(storage.size()) - self._sizes[key]
            self._sizes[key] += change
            self._change(change, key in self._constant)

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        constant = all(map(self._is_constant, tensors_in((*args, *kwargs.values()))))
        outputs = op(*args, **kwargs)
        for each in tensors_in((outputs,)):
            self.add(each, constant or self._has_constant_shape(each))
        return outputs

    def _has_constant_shape(self, tensor: Tensor) -> bool:
        shape = tuple(tensor.shape)
        return shape in self.constant_shapes or shape[::-1] in self.constant_shapes


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among the arguments or results of an operation; lists of them are flat."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (each for each in value if isinstance(each, Tensor))
