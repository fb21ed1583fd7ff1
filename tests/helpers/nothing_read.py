"""A mode in which no value is read from a tensor."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Refused(AssertionError):
    """A value was read from a tensor."""


class NothingIsRead(TorchDispatchMode):
    """On a CUDA device each of READS waits until everything before it is computed."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, flat = operation.overloadpacket.__name__, tree_leaves((args, kwargs))
        by_mask = name.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in flat[1:]
        )
        if name in READS or by_mask:
            raise Refused(str(operation))
        return operation(*args, **(kwargs or {}))
