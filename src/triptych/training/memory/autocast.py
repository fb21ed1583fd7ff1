"""CUDA autocast's dtypes, for tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# Operations that run in float32 under CUDA autocast (ATen/autocast_mode.h). Those of the CPU's own
# list run in float32 anyway; these are the ones it leaves in the dtype of their inputs.
FLOAT32 = frozenset(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ "
    "__rpow__ softplus layer_norm native_layer_norm group_norm cosine_similarity nll_loss kl_div "
    "l1_loss smooth_l1_loss huber_loss mse_loss cross_entropy binary_cross_entropy_with_logits "
    "dist cdist logsumexp interpolate prod softmax log_softmax cumprod cumsum norm vector_norm sum "
    "rms_norm".split()
)


class CUDAAutocast(TorchFunctionMode):
    """Casts the inputs of an operation to float32 where CUDA autocast would.

    Beside `torch.autocast("cpu", dtype)`, which treats matrix products and convolutions as CUDA's
    does, dtypes inside of a step are those on a GPU.
    """

    @classmethod
    def inside(cls, call: Callable) -> Callable:
        """`call`, always under this mode."""

        @wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with cls():
                return call(*args, **kwargs)

        return wrapped

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _to_float32, (args, kwargs))
        return function(*args, **kwargs)


def _to_float32(tensor: Tensor) -> Tensor:
    low = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if low else tensor
