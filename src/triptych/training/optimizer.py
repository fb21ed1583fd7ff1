"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from triptych.training.freezing import match_parameters
from triptych.training.muon import MuonWithAdamW, block_matrices

OptimizerCallable = Callable[[Iterable], torch.optim.Optimizer]
LRSchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass
class Optimization:
    """Optimizer and learning-rate schedule over the run's `max_steps`; AdamW by default.

    Defaults are those of the published stage 2: warm-up over 0.3% of the steps, then a cosine
    from `lr` to `min_lr`.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_ratio: float = 0.003
    """Share of the steps with linear warm-up from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_scheduler: Literal["cosine", "constant"] | LRSchedulerCallable = "cosine"
    """Schedule, or the class path of a torch scheduler, which is stepped once per step."""
    optimizer: Literal["muon"] | OptimizerCallable | None = None
    """"muon", which moves the matrices of repeated blocks by Muon and the rest by AdamW, see
    `MuonWithAdamW`; or the class path of another optimizer, such as torch.optim.SGD. It gets the
    same parameter groups with `lr` and `weight_decay`; `betas` and `eps` are only for AdamW."""
    lr_overrides: dict[str, float] = field(default_factory=dict)
    """Peak learning rates of some parameters, by patterns as in `trainable`, on the same schedule.
    If several patterns match a parameter, the last one is used."""


def make_optimizer(module: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """Create the optimizer of all trainable parameters; weight decay on matrices only.

    Raises:
        UserError: a pattern of `settings.lr_overrides` matches no trainable parameter, or torch has
            no Muon and `settings` ask for it.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rates = dict.fromkeys(trained, settings.lr)
    for pattern, rate in settings.lr_overrides.items():
        rates |= dict.fromkeys(
            match_parameters(trained, [pattern], "lr_overrides, of what trains"), rate
        )
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
        for rate in dict.fromkeys([settings.lr, *settings.lr_overrides.values()])
        for matrices in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "muon":
        return _muon(
            groups,
            {id(trained[name]) for name in block_matrices(module) & trained.keys()},
            settings,
        )
    if settings.optimizer is not None:
        return settings.optimizer(groups)
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def _muon(
    groups: list[dict[str, Any]], matrices: set[int], settings: Optimization
) -> torch.optim.Optimizer:
    """Split each group into the parameters whose id is in `matrices` and the rest."""
    split = []
    for group in groups:
        for muon in (True, False):
            own = [p for p in group["params"] if (id(p) in matrices) == muon]
            split.append({**group, "params": own, "muon": muon})
    split = [group for group in split if group["params"]]
    return MuonWithAdamW(split, settings.lr, betas=settings.betas, eps=settings.eps)


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int, settings: Optimization
) -> torch.optim.lr_scheduler.LRScheduler:
    """Create the learning-rate schedule over `steps`."""
    if callable(settings.lr_scheduler):
        return settings.lr_scheduler(optimizer)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, settings)
    )


def learning_rate_factor(step: int, steps: int, settings: Optimization) -> float:
    """Factor on `lr` at `step` of `steps`: linear warm-up, then cosine to min_lr or constant."""
    warmup = max(1, round(settings.warmup_ratio * steps))
    if step < warmup:
        return (step + 1) / warmup
    if settings.lr_scheduler == "constant":
        return 1.0
    floor = settings.min_lr / settings.lr
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
