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
    """Execution options: precision, compilation, sharding; they change results only by rounding."""

    frozen_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of frozen parameters; trainable ones stay in float32. None is bfloat16
    where the Trainer's precision is bf16-mixed, else float32."""
    frozen_params: Literal["auto", "shard", "replicate"] = "auto"
    """Frozen parameters under FSDP2: sharded over the ranks, or replicated on each rank, which
    takes memory and saves gathering them in every step. "auto" replicates them if they take at
    most half of a GPU's memory, and shards them on the CPU."""
    activation_checkpointing: bool = False
    """Recompute trainable blocks in the backward pass instead of storing their activations: saves
    memory for a third more arithmetic."""
    compile: bool = False
    """torch.compile, block by block."""
    compile_backend: str = "inductor"
    """Backend of torch.compile; "eager" and "aot_eager" need no C++ compiler."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Attention: torch's, or xformers' for UNet and VAE, refused where it is unsupported."""


def cast_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen floating-point parameters to `dtype`; buffers keep their dtype, for tables."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def recompute_blocks(module: nn.Module) -> None:
    """Enable activation checkpointing of trainable blocks."""
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
    # dynamo compiles the shared code of all layers once for each layer number; beyond its limit
    # the other layers would run uncompiled
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(blocks))
    for block in blocks:
        # not the module: FSDP's hooks around a block stay outside
        block.forward = torch.compile(block.forward, backend=backend)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Blocks of all built parts."""
    parts = [each for each in module.modules() if isinstance(each, LazyModule) and each.is_built]
    return [block for part in parts for block in part.blocks()]
