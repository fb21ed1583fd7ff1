"""Placement of frozen parameters under FSDP2, and the memory that a run may use."""

from __future__ import annotations

from typing import Literal

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

USABLE = 0.9
"""Share of a GPU's memory for tensors. CUDA's context, NCCL, cuBLAS workspaces and fragmentation
take the rest."""
REPLICATED = 0.5
"""Share of a GPU's memory that replicated frozen parameters may take."""


def frozen_placement(frozen_bytes: int, memory: int | None) -> Literal["shard", "replicate"]:
    """Return where frozen parameters are kept under `frozen_params: auto`.

    Replicated, they are never gathered: at 8B that is most of the traffic of a step. A function of
    sizes alone, so that all ranks decide alike.

    Args:
        frozen_bytes: bytes of all frozen parameters.
        memory: bytes of the smallest device; None if it is unknown, as on the CPU.
    """
    fits = memory is not None and frozen_bytes <= REPLICATED * memory
    return "replicate" if fits else "shard"


def smallest_memory(device: torch.device, mesh: DeviceMesh) -> int | None:
    """Return the memory in bytes of the smallest device of a mesh; None on the CPU. Collective."""
    if device.type != "cuda":
        return None
    memory = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    distributed.all_reduce(memory, distributed.ReduceOp.MIN, group=mesh.get_group())
    return int(memory)
