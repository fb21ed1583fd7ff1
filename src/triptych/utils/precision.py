"""Precision: a module's dtype is that of its parameters; its buffers stay float32.

Buffers need precision: rotary frequencies, position tables, image normalization, noise schedules,
running statistics. In bfloat16, a frequency has an error of up to 0.4%, and its angle at position
2,000 of several radians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

# suffixes of buffers in weight files, those of batch norms and of the generator; all others are
# computed when a network is built. tests/utils/test_precision.py checks that there are no others.
STATISTICS = ("running_mean", "running_var", "feature_std")


class ExactBuffers(nn.Module):
    """A module whose buffers stay at least float32 in every cast, as do those of inner modules.

    `to`, `half`, `bfloat16` and Lightning's precision plugins cast only the parameters; `double`
    widens the buffers too. Integer and complex buffers keep their dtype.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # torch applies every cast and move `fn` by this method, inner modules first
        buffers = {id(buffer): buffer for buffer in self.buffers(recurse)}

        def apply(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if id(tensor) not in buffers or result.dtype == tensor.dtype:
                return result
            return tensor.to(result.device, exact(tensor.dtype, result.dtype))

        return super()._apply(apply, recurse)


def exact(built: torch.dtype, target: torch.dtype) -> torch.dtype:
    """Dtype of a buffer built as `built` when parameters are cast to `target`."""
    return torch.promote_types(target, torch.float32) if built.is_floating_point else built


def exported(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Dtype of a tensor in a weight file of `dtype`; statistics and counts keep theirs."""
    unchanged = name.endswith(STATISTICS) or not tensor.is_floating_point()
    return tensor.dtype if unchanged else dtype


@contextmanager
def own_precision(module: nn.Module) -> Iterator[None]:
    """Compute in the dtype of the parameters of `module`, a frozen network, inside the block.

    Autocast, which is meant for float32 parameters, would run the norms of a network that was cast
    whole in float32, and cast its residual stream forth and back in every layer.
    """
    parameter = next(module.parameters())
    whole = parameter.dtype not in (torch.float32, torch.float64)
    with torch.autocast(parameter.device.type, enabled=False) if whole else nullcontext():
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Tensors made inside without a dtype are float32, also under Lightning's bf16-true."""
    before: Any = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
