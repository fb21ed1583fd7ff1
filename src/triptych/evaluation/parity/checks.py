"""Errors of quantities, and their tolerances.

Errors are maximum absolute errors relative to the maximum absolute recorded value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FORWARD = 1e-5
GRADIENT = 1e-4


@dataclass(frozen=True)
class Quantity:
    """Error of one quantity against its recorded value."""

    case: str
    name: str
    error: float
    """Relative error; for exact quantities, the number of different entries."""
    bound: float
    """Largest permitted error."""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for nan


@dataclass
class Checks:
    """Collects the quantities of one case."""

    case: str
    quantities: list[Quantity] = field(default_factory=list)

    def values(self, name: str, ours: Tensor, recorded: Tensor) -> None:
        """Check forward values."""
        self._add(name, relative_error(ours, recorded), FORWARD)

    def gradient(self, name: str, ours: Tensor | None, recorded: Tensor) -> None:
        """Check a gradient; None is a missing one."""
        error = float("inf") if ours is None else relative_error(ours, recorded)
        self._add(name, error, GRADIENT)

    def same(self, name: str, ours, recorded) -> None:
        """Check tensors or lists that must be identical, such as ids, names and pixels."""
        if isinstance(ours, Tensor):
            ours = ours.tolist()
        if isinstance(recorded, Tensor):
            recorded = recorded.tolist()
        self._add(name, float(differences(ours, recorded)), 0.0)

    def rounded(self, name: str, ours: Tensor, recorded: Tensor) -> None:
        """Check pixels uint8 against recorded values in [0,1] before their rounding.

        A pixel may differ only where an error within the forward bound changes the rounding.
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
    """Maximum absolute error over the maximum absolute recorded value; inf for another shape."""
    if ours.shape != recorded.shape:
        return float("inf")
    recorded = recorded.double()
    scale = recorded.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((ours.detach().double() - recorded).abs().max() / scale).item()


def differences(ours, recorded) -> int:
    """Number of different entries of two nested lists or values."""
    if isinstance(ours, list) and isinstance(recorded, list):
        paired = sum(differences(a, b) for a, b in zip(ours, recorded, strict=False))
        return paired + abs(len(ours) - len(recorded))
    return int(ours != recorded)
