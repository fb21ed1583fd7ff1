"""Checks that computed results are finite, with the name of the stage."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.utils.errors import NotFiniteError


def all_finite(tensor: Tensor) -> Tensor:
    """Whether all values of a floating-point `tensor` are finite, bool [] on its device.

    One pass without additional memory or device synchronization.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.stack(tensor.detach().aminmax()).isfinite().all()  # NaN makes both of them NaN


def require_finite(result: Tensor, stage: str) -> None:
    """Check the result of a stage of the model; synchronizes with a GPU.

    Args:
        result: values; or bool [], whether all are finite.
        stage: name of the values, a plural such as "the image features of the generator".

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    if not (all_finite(result) if result.is_floating_point() else result):
        raise NotFiniteError(
            f"{stage} are NaN or infinite, and no result can follow from them: compute in bfloat16 "
            "or float32 if this was float16 (--dtype), or take other weights."
        )
