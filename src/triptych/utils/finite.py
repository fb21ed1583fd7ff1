"""Checks that computed results are finite: refused with the name of the stage."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.utils.errors import NotFiniteError


def all_finite(tensor: Tensor) -> Tensor:
    """Whether no number of a floating-point `tensor` is NaN or infinite, bool [] on its device.

    One pass and no memory; nothing waits for the device until the result is read.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.stack(tensor.detach().aminmax()).isfinite().all()  # NaN makes both of them NaN


def require_finite(made: Tensor, stage: str) -> None:
    """Check the result of a stage of the model, once a batch: synchronizes with a GPU.

    Args:
        made: the numbers; or, bool [], whether all are finite.
        stage: a plural, such as "the image features of the generator".

    Raises:
        NotFiniteError: some are NaN or infinite.
    """
    if not (all_finite(made) if made.is_floating_point() else made):
        raise NotFiniteError(
            f"{stage} are NaN or infinite, and no result can follow from them: compute in bfloat16 "
            "or float32 if this was float16 (--dtype), or take other weights."
        )
