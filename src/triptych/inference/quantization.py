"""4- and 8-bit weights of the language model, by bitsandbytes.

4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314); LLM.int8 (Dettmers et al. 2022, arXiv
2208.07339).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from triptych.interfaces import LazyModule
from triptych.utils.errors import UserError

Quantize = Literal["4bit", "8bit"]
CHOICES = ("4bit", "8bit")


def require_quantizer(bits: str) -> None:
    """Check that quantization is available, before anything is loaded.

    Raises:
        UserError: the precision is unknown, or the library is not installed.
    """
    if bits not in CHOICES:
        raise UserError(f"quantize is {bits!r}; choose from {', '.join(CHOICES)}.")
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize {bits} needs bitsandbytes, which is not installed; "
            "pip install 'triptych[quantize]'."
        )


def quantize(part: LazyModule, bits: Quantize) -> int:
    """Replace the linear maps in the blocks of a frozen part; returns their number.

    Embeddings, norms and modules outside of blocks are unchanged. bitsandbytes quantizes the
    weights when they are next moved to the device.
    """
    replaced = 0
    for block in part.blocks():
        for name, each in list(block.named_modules()):
            if type(each) is nn.Linear:
                block.set_submodule(name, _small(each, bits))
                replaced += 1
    return replaced


def _small(linear: nn.Linear, bits: Quantize) -> nn.Module:
    """Quantized replacement of `linear`, which computes in the dtype of its weight."""
    import bitsandbytes  # slow import of an optional library

    sizes: dict[str, Any] = {
        "input_features": linear.in_features,
        "output_features": linear.out_features,
        "bias": linear.bias is not None,
    }
    kinds, weight = bitsandbytes.nn, linear.weight.data
    with torch.device("meta"):
        if bits == "4bit":
            small = kinds.Linear4bit(**sizes, compute_dtype=weight.dtype, quant_type="nf4")
        else:
            small = kinds.Linear8bitLt(**sizes, has_fp16_weights=False, threshold=6.0)
    if bits == "4bit":
        small.weight = kinds.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=small
        )
    else:
        small.weight = kinds.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    small.bias = linear.bias
    return small.requires_grad_(False)
