"""Looks at a model in training, and at the pictures it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch import Tensor


@contextmanager
def inspecting(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluation mode, no gradients, the run's precision; the run goes on as if nothing was.

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


def to_arrays(pictures: Tensor) -> np.ndarray:
    """uint8 [B,3,H,W] on any device -> uint8 [B,H,W,3]."""
    return pictures.permute(0, 2, 3, 1).cpu().numpy()
