"""What trains, what is frozen, and the optimizer of what trains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from triptych.utils.errors import UserError


@dataclass
class Optimization:
    """AdamW and a learning-rate schedule over the run's `max_steps`.

    Defaults are those of the published stage 2: warm-up over 0.3% of the steps, then a cosine
    from `lr` to `final_lr`.
    """

    lr: float = 1e-4
    final_lr: float = 1e-5
    warmup: float = 0.003
    """Share of the steps that warm up linearly from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    rates: dict[str, float] = field(default_factory=dict)
    """Parts that learn at a rate of their own: a pattern as in `trains`, and its peak instead of
    `lr`, on the same schedule. Where several match a parameter, the last one counts."""


def selected(names: Iterable[str], patterns: Iterable[str], option: str = "trains") -> set[str]:
    """The names under one of the patterns: a module path ("generation") or a glob ("*.dit.*").

    Args:
        option: where the patterns are from, for the message.

    Raises:
        UserError: a pattern matches nothing, so that a misspelling never freezes in silence.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {
            name for name in names if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
        }
        if not found:
            tops = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"{option}: {pattern!r} matches no parameter; the model's parts are {tops}."
            )
        chosen |= found
    return chosen


def inert(name: str) -> bool:
    """Whether nothing uses a parameter: diffusers' pad_token stays frozen and is in no file."""
    return name.endswith("dit.pad_token")


def freeze_all_but(module: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Set requires_grad by `patterns`; returns the names of the parameters that train."""
    parameters = dict(module.named_parameters())
    trained = {name for name in selected(parameters, patterns) if not inert(name)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    return trained


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Largest submodules none of whose parameters train: they belong in evaluation mode."""
    found = []
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            found.append(child)
        else:
            found.extend(frozen_modules(child))
    return found


def make_optimizer(module: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """AdamW over what trains; weight decay on matrices only. Fused where the device has it.

    Raises:
        UserError: one of `settings.rates` is of nothing that trains.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rates = dict.fromkeys(trained, settings.lr)
    for pattern, rate in settings.rates.items():
        rates |= dict.fromkeys(selected(trained, [pattern], "rates, of what trains"), rate)
    groups = [
        {
            "params": [
                parameter
                for name, parameter in trained.items()
                if rates[name] == rate and (parameter.ndim >= 2) == matrices
            ],
            "weight_decay": settings.weight_decay if matrices else 0.0,
            "lr": rate,
        }
        for rate in dict.fromkeys([settings.lr, *settings.rates.values()])
        for matrices in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def learning_rate_factor(step: int, steps: int, settings: Optimization) -> float:
    """Factor on `lr` at `step` of `steps`: linear warm-up, then cosine to final_lr or constant."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    floor = settings.final_lr / settings.lr
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
