"""FSDP2 sharding: parameters split over ranks, gathered and filled.

No class is named here: a part defines its own blocks (`LazyModule.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from triptych.interfaces import LazyModule


def shard(
    module: nn.Module, mesh: DeviceMesh, frozen_params: Literal["shard", "replicate"]
) -> None:
    """Split parameters over the ranks of `mesh`, in place (FSDP2, Zhao et al. 2023, 2304.11277).

    A block of a part is gathered when it computes, and so are parameters of a part outside of its
    blocks. Parameters outside of parts, such as the queries, are split too; see `whole`.
    """
    kept = {p for p in module.parameters() if frozen_params == "replicate" and not p.requires_grad}
    parts = [each for each in module.modules() if isinstance(each, LazyModule) and each.is_built]
    for part in reversed(parts):  # inner ones first
        for unit in [*part.blocks(), *part.called_modules()]:  # FSDP2 wants the outer ones first
            if any(p not in kept and not isinstance(p, DTensor) for p in unit.parameters()):
                # Also the last unit gives back what it gathered: weights that are exchanged
                # between steps (a moving average) must never meet an old gathered copy.
                fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
                if isinstance(unit, nn.Embedding) and not unit.weight.requires_grad:
                    # no backward pass needs it: it would be gathered ahead, being the next unit
                    unit.set_unshard_in_backward(False)
        for name in part.fsdp_forward_methods:
            _register(part, name)
    for each in module.modules():
        if isinstance(each, LazyModule):
            continue
        for name, parameter in each.named_parameters(recurse=False):
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                split = _split(parameter, mesh)
                setattr(each, name, nn.Parameter(split, parameter.requires_grad))


@dataclass(frozen=True)
class _OnHost:
    """A tensor of the host as an argument, which FSDP2 does not look into."""

    tensor: Tensor


def _register(part: nn.Module, name: str) -> None:
    """Let FSDP2 gather parameters for a method of `part`, and leave the host's tensors there.

    FSDP2 moves all tensors among the arguments to the GPU, and waits; the model would wait again to
    read those that it needs on the host, such as the grids of images.
    """
    method = getattr(part, name)

    @wraps(method)
    def shown(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        values = [each.tensor if isinstance(each, _OnHost) else each for each in args]
        named = {k: v.tensor if isinstance(v, _OnHost) else v for k, v in kwargs.items()}
        return method(*values, **named)

    setattr(part, name, MethodType(shown, part))
    register_fsdp_forward_method(part, name)
    hooked = getattr(part, name)

    @wraps(method)
    def hidden(*args: Any, **kwargs: Any) -> Any:
        if next(part.parameters()).device.type == "cpu":  # all are there
            return hooked(*args, **kwargs)
        return hooked(*map(_hide, args), **{k: _hide(v) for k, v in kwargs.items()})

    setattr(part, name, hidden)


def _hide(value: Any) -> Any:
    on_host = isinstance(value, Tensor) and value.device.type == "cpu"
    return _OnHost(value) if on_host else value


def _split(parameter: Tensor, mesh: DeviceMesh) -> DTensor:
    if parameter.is_meta:
        rows = local_rows(len(parameter), mesh)
        local = parameter.new_empty(len(range(*rows.indices(len(parameter)))), *parameter.shape[1:])
        return DTensor.from_local(
            local, mesh, [Shard(0)], shape=parameter.shape, stride=parameter.stride()
        )
    return distribute_tensor(parameter.detach().to(mesh.device_type), mesh, [Shard(0)])


def local_rows(rows: int, mesh: DeviceMesh) -> slice:
    """Slice of `rows` stored on this rank, cut like `torch.chunk`."""
    chunk = -(-rows // mesh.size())
    start = min(mesh.get_local_rank() * chunk, rows)
    return slice(start, min(start + chunk, rows))


@torch.no_grad()
def copy_into(target: Tensor, shape: tuple[int, ...], read: Callable[[slice], Tensor]) -> None:
    """Copy rows into `target` by `read` of slices; a sharded target reads only its own rows."""
    if not isinstance(target, DTensor):
        target.copy_(read(slice(None)) if shape else read(...))
    elif len(local := target.to_local()):
        local.copy_(read(local_rows(shape[0], target.device_mesh)))


def shard_like(full: Tensor, target: Tensor) -> Tensor:
    """`full`, which every rank has, sharded like `target`."""
    if not isinstance(target, DTensor):
        return full
    rows = local_rows(len(full), target.device_mesh)
    # a copy also on the CPU: a view would keep the whole of `full` in memory on every rank
    local = full[rows].to(target.device, copy=True)
    return DTensor.from_local(
        local, target.device_mesh, target.placements, shape=full.shape, stride=full.stride()
    )


def full_tensor(parameter: Tensor) -> Tensor:
    """`parameter`, gathered if it is split over ranks; its gradient is the mean over ranks."""
    if not isinstance(parameter, DTensor):
        return parameter
    gathered = parameter.full_tensor(grad_placements=[Partial()])
    ranks = parameter.device_mesh.size()
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient / ranks)
    return gathered


def gather_state_dict(tree: Any, keep: bool = True) -> Any:
    """`tree` (dicts, lists) with full tensors on the CPU; all ranks must call it.

    Ranks that do not `keep` the result get None in place of tensors, and hold one at a time.
    """
    if isinstance(tree, dict):
        return {name: gather_state_dict(value, keep) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gather_state_dict(value, keep) for value in tree)
    if not isinstance(tree, Tensor):
        return tree
    full = tree.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    return full.cpu() if keep else None
