"""Sizes of parameters split over ranks, and of their checkpoints, by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


def shard_numel(shape: Sequence[int], ranks: int, rank: int = 0) -> int:
    """Number of elements of a parameter on one rank, cut by rows like `torch.chunk`.

    Each rank has ceil(rows / ranks) rows, the last of them fewer, and with fewer rows than ranks
    some have none. The first rank always has the most.
    """
    rows, *row = shape
    chunk = -(-rows // ranks)
    return max(0, min(chunk, rows - rank * chunk)) * math.prod(row)


@dataclass(frozen=True)
class CheckpointPlan:
    """Files and sizes of one checkpoint."""

    files: int
    """Number of files, including index and manifest."""
    rank_bytes: tuple[int, ...]
    """Bytes of tensors that each rank writes; headers of the files are not counted."""

    @property
    def total_bytes(self) -> int:
        """Bytes of tensors in all files."""
        return sum(self.rank_bytes)


def checkpoint_plan(
    trained: Mapping[str, Tensor], ranks: int, *, save_sharded: bool = False, moments: int = 2
) -> CheckpointPlan:
    """Files of a checkpoint, and the bytes that each rank writes into them.

    Args:
        trained: full tensors as in `BaseModule.trained_state`, possibly on the meta device: what
            trains, and its buffers.
        ranks: number of ranks.
        save_sharded: whether each rank writes its own shard, as `ShardedStrategy` can; else the
            first rank writes one file, under any strategy.
        moments: tensors that the optimizer keeps for each parameter, in its dtype; 2 for AdamW,
            which keeps a float32 step number beside them.
    """
    copies = 1 + moments
    parameters = [each for each in trained.values() if isinstance(each, nn.Parameter)]
    replicated = sum(each.nbytes for each in trained.values() if not isinstance(each, nn.Parameter))
    replicated += 4 * len(parameters) if moments else 0
    if not save_sharded:
        whole = replicated + copies * sum(each.nbytes for each in parameters)
        return CheckpointPlan(2, (whole, *[0] * (ranks - 1)))
    rank_bytes = [
        copies * sum(shard_numel(p.shape, ranks, rank) * p.element_size() for p in parameters)
        for rank in range(ranks)
    ]
    rank_bytes[0] += replicated  # torch spreads them over the ranks
    return CheckpointPlan(ranks + 3, tuple(rank_bytes))  # the index, meta.pt and the manifest
