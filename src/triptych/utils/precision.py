"""Number formats: a module's dtype is that of its parameters; its buffers stay float32.

Buffers hold what a network computes with exactly: rotary frequencies, position tables, the
normalization of images, noise schedules, running statistics. In bfloat16, a frequency is off by up
to 0.4%, and its angle at position 2,000 by several radians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

# Endings of the buffers that weight files hold, those of batch norms; all others are computed when
# a network is built. tests/utils/test_precision.py checks that no part has another.
STATISTICS = ("running_mean", "running_var")


class ExactBuffers(nn.Module):
    """A module whose buffers stay at least float32 in every cast, as do those of inner modules.

    `to`, `half`, `bfloat16` and Lightning's precision plugins cast only the parameters; `double`
    widens the buffers too. Whole and complex numbers keep their dtype.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every cast and move of torch goes through here: as `fn`, first for the inner modules.
        buffers = {id(buffer): buffer for buffer in self.buffers(recurse)}

        def apply(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            if id(tensor) not in buffers or made.dtype == tensor.dtype:
                return made
            return tensor.to(made.device, exact(tensor.dtype, made.dtype))

        return super()._apply(apply, recurse)


def exact(built: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    """The dtype of a buffer that was built as `built` where the parameters become `wanted`."""
    return torch.promote_types(wanted, torch.float32) if built.is_floating_point else built


def exported(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor in a weight file of `dtype`; statistics and counts keep theirs."""
    kept = name.endswith(STATISTICS) or not tensor.is_floating_point()
    return tensor.dtype if kept else dtype


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Tensors made inside without a dtype are float32, also under Lightning's bf16-true."""
    before: Any = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
