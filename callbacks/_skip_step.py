"""Skip an optimizer step: weights and optimizer state stay, bit for bit.

torch's fused optimizers have a switch, made for float16's scaler: where the attribute
`found_inf` is 1, the kernel writes nothing and its step count stays. That is a number on the
device: no synchronization. For other optimizers the gradients are removed; that needs the answer
on the host, a device synchronization in each step on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def skip_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Skip the optimizer's next step if `bad`, a bool scalar on the device of its parameters.

    Several callers in one step: one of them suffices.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        asked = was_skipped(optimizer)
        optimizer.found_inf = bad.float() if asked is None else torch.maximum(asked, bad.float())
    elif bad:
        optimizer.zero_grad(set_to_none=True)


def was_skipped(optimizer: Optimizer) -> Tensor | None:
    """Whether this batch's step is skipped: 1.0 or 0.0 on the device; None without `skip_step`.

    For an optimizer that is not fused, `has_gradients` is the answer.
    """
    return getattr(optimizer, "found_inf", None)


def reset(optimizer: Optimizer) -> None:
    """Before a batch: nothing is known of its step yet."""
    if was_skipped(optimizer) is not None:
        optimizer.found_inf = None


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that the optimizer sees; of sharded parameters this rank's part."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [local(p.grad) for p in parameters if p.grad is not None]


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter has one: a step without gradients changes nothing."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
