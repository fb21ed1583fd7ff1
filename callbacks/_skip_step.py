"""Skips of an optimizer step: weights and optimizer state stay bit-identical.

torch's fused optimizers have a switch for the float16 scaler: if the attribute `found_inf` is 1,
the kernel writes nothing and does not count the step. The switch is on the device and needs no
synchronization. For other optimizers the gradients are removed, which needs a device
synchronization in each step on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def skip_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Skip the optimizer's next step if `bad`, a bool scalar on the device of its parameters.

    With several callers in one step, one bad value suffices.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        before = was_skipped(optimizer)
        optimizer.found_inf = bad.float() if before is None else torch.maximum(before, bad.float())
    elif bad:
        optimizer.zero_grad(set_to_none=True)


def was_skipped(optimizer: Optimizer) -> Tensor | None:
    """Whether this batch's step is skipped: 1.0 or 0.0 on the device; None without `skip_step`.

    For an optimizer that is not fused, use `has_gradients`.
    """
    return getattr(optimizer, "found_inf", None)


def reset(optimizer: Optimizer) -> None:
    """Reset the switch before a batch."""
    if was_skipped(optimizer) is not None:
        optimizer.found_inf = None


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Gradients of the optimizer's parameters; of sharded ones, this rank's shard."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [local(p.grad) for p in parameters if p.grad is not None]


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter has a gradient: a step without gradients changes nothing."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
