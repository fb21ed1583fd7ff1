"""Evaluation mode of a model in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Enter evaluation mode without gradients, in the run's precision; restore all state at exit.

    Every rank must enter and compute the same, as parameters may be sharded.
    """
    modes = [(each, each.training) for each in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            with trainer.precision_plugin.forward_context():
                yield
    finally:
        for each, training in modes:  # module.train() would affect frozen modules too
            each.training = training
