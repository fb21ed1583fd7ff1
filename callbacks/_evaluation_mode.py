"""Evaluation mode of a model in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Enter evaluation mode without gradients, in the run's precision; restore all state at exit.

    Every rank must enter and compute the same: parts may be sharded over them.
    """
    modes = [(each, each.training) for each in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            with trainer.precision_plugin.forward_context():
                yield
    finally:
        for each, training in modes:  # not module.train(): it would reach into frozen parts
            each.training = training
