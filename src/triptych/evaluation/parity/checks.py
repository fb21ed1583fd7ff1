"""Errors of quantities, and their tolerances.

The bounds are of the greatest absolute error, relative to the greatest absolute value recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FORWARD = 1e-5
GRADIENT = 1e-4


@dataclass(frozen=True)
class Quantity:
    """One recorded quantity beside ours."""

    case: str
    name: str
    error: float
    """Relative error; for what must be identical, how many entries are not."""
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # false for nan, too


@dataclass
class Checks:
    """Collects the quantities of one case."""

    case: str
    quantities: list[Quantity] = field(default_factory=list)

    def values(self, name: str, ours: Tensor, recorded: Tensor) -> None:
        """Forward values."""
        self._add(name, relative_error(ours, recorded), FORWARD)

    def gradient(self, name: str, ours: Tensor | None, recorded: Tensor) -> None:
        """A gradient; None is one that was never computed."""
        error = float("inf") if ours is None else relative_error(ours, recorded)
        self._add(name, error, GRADIENT)

    def same(self, name: str, ours, recorded) -> None:
        """Ids, names, pixels: tensors or lists that must be identical."""
        if isinstance(ours, Tensor):
            ours = ours.tolist()
        if isinstance(recorded, Tensor):
            recorded = recorded.tolist()
        self._add(name, float(differences(ours, recorded)), 0.0)

    def rounded(self, name: str, ours: Tensor, recorded: Tensor) -> None:
        """Pixels uint8, and the recorded values in [0,1] that were rounded to pixels.

        A value that the forward bound allows may round to the other side: that pixel is allowed
        both ways, any other is not.
        """
        room = FORWARD * recorded.abs().max()
        lowest, highest = (
            (value.clamp(0, 1) * 255).round() for value in (recorded - room, recorded + room)
        )
        outside = (ours < lowest) | (ours > highest)
        self._add(name, float(outside.sum()), 0.0)

    def _add(self, name: str, error: float, bound: float) -> None:
        self.quantities.append(Quantity(self.case, name, error, bound))


def relative_error(ours: Tensor, recorded: Tensor) -> float:
    """Greatest absolute error over the greatest absolute value recorded; inf for another shape."""
    if ours.shape != recorded.shape:
        return float("inf")
    recorded = recorded.double()
    scale = recorded.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((ours.detach().double() - recorded).abs().max() / scale).item()


def differences(ours, recorded) -> int:
    """Number of entries of two nested lists, or of two values, that are not the same."""
    if isinstance(ours, list) and isinstance(recorded, list):
        paired = sum(differences(a, b) for a, b in zip(ours, recorded, strict=False))
        return paired + abs(len(ours) - len(recorded))
    return int(ours != recorded)
