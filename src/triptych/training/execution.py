"""Precision of frozen parameters, activation checkpointing and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from triptych.interfaces import LazyModule


@dataclass
class Execution:
    """Execution options: precision, compilation and sharding; results are equal to rounding."""

    frozen_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of frozen parameters; trainable ones stay in float32. None is bfloat16
    where the Trainer's precision is bf16-mixed, else float32."""
    frozen_params: Literal["shard", "replicate"] = "shard"
    """Under FSDP2: what does not train is split over the ranks, or each has it whole, which costs
    memory and saves gathering it in every step."""
    activation_checkpointing: bool = False
    """Compute the blocks of what trains again in the backward pass instead of keeping their
    activations: memory for a third more arithmetic."""
    compile: bool = False
    """torch.compile, block by block."""
    compile_backend: str = "inductor"
    """Backend of torch.compile; "eager" and "aot_eager" need no C++ compiler."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's, or xformers' for the UNet and the VAE, refused where it does not work."""


def cast_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen floating-point parameters to `dtype`; buffers keep theirs, tables need it."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def recompute_blocks(module: nn.Module) -> None:
    """Activation checkpointing: recompute the activations of blocks that train when needed."""
    for block in blocks_of(module):
        if any(p.requires_grad for p in block.parameters()):
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable) -> Callable:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return call


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Apply torch.compile to every block, in place: names and checkpoints do not change."""
    blocks = blocks_of(module)
    # All layers of a network share one code, which dynamo compiles once for each layer number that
    # it sees; beyond its limit it would run the other layers uncompiled.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(blocks))
    for block in blocks:
        # Not the module: what gathers and gives back parameters around a block stays outside.
        block.forward = torch.compile(block.forward, backend=backend)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of all built parts."""
    parts = [each for each in module.modules() if isinstance(each, LazyModule) and each.is_built]
    return [block for part in parts for block in part.blocks()]
