"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from triptych.training.freezing import selected


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
