"""A second set of the weights that train, which a module can compute with for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from triptych.training.fsdp import gather_state_dict, shard_like
from triptych.utils.errors import UserError


class WeightCopy:
    """Float32 copies of the parameters of a module that require gradients.

    Of sharded parameters a rank has its part. Exchanging both sets copies them, which leaves the
    bits of either as they are.

    Args:
        module: built module.
        stored: full float32 tensors by parameter name to start from, of `state_dict`; None is the
            module's own weights.

    Raises:
        UserError: `stored` is of other parameters.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, stored: Mapping[str, Tensor] | None = None) -> None:
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if stored is None:
            copies = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        elif different := stored.keys() ^ self._parameters.keys():
            raise UserError(
                f"the checkpoint's copy of the weights and this run disagree on {min(different)}; "
                "resume it with the configuration that made it."
            )
        else:
            copies = {
                name: shard_like(stored[name], p).to(p.device).clone()
                for name, p in self._parameters.items()
            }
        self._copies: dict[str, Tensor] = copies

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """copy <- decay copy + (1 - decay) weights."""
        current = [_local(p).float() for p in self._parameters.values()]
        torch._foreach_lerp_([_local(c) for c in self._copies.values()], current, 1 - decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The copies are the module's weights inside the block, in which nothing learns."""
        with torch.no_grad():
            weights = [_local(p).clone() for p in self._parameters.values()]
            self._write(_local(copy) for copy in self._copies.values())
            try:
                yield
            finally:
                self._write(iter(weights))

    def _write(self, values: Iterator[Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            _local(parameter).copy_(value)

    def distance(self) -> Tensor:
        """Euclidean distance between both sets on this rank, float32 []."""
        pairs = zip(self._parameters.values(), self._copies.values(), strict=True)
        squares = [(_local(p).float() - _local(c)).square().sum() for p, c in pairs]
        return torch.stack(squares).sum().sqrt()

    def state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        """Full tensors on the CPU by parameter name; all ranks must call it."""
        return gather_state_dict(self._copies, keep=keep)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
