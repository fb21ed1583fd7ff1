"""Trainer flags: validation, and reconciliation with the callbacks and loggers.

Lightning checks most flags itself, when a Trainer is created. This module adds the ranges of
numbers that it accepts and fails on later, and flags that contradict callbacks or loggers.
"""

from __future__ import annotations

import logging
import os
from pkgutil import resolve_name
from typing import Any

from lightning.fabric.plugins import environments
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)

from triptych.utils.errors import UserError
from triptych.utils.limits import Range

log = logging.getLogger(__name__)

_MANY = 1_000_000_000_000
_RANGES = {
    "accumulate_grad_batches": Range(True, 1, 1_000_000),
    "check_val_every_n_epoch": Range(True, 1, _MANY),
    "gradient_clip_val": Range(False, 0, _MANY),
    "log_every_n_steps": Range(True, 0, _MANY),
    "min_epochs": Range(True, 0, _MANY),
    "min_steps": Range(True, 0, _MANY),
    "num_nodes": Range(True, 1, 1_000_000),
    "num_sanity_val_steps": Range(True, -1, _MANY),
    "reload_dataloaders_every_n_epochs": Range(True, 0, _MANY),
    "val_check_interval": Range(False, 0, _MANY, above=True),
}
_BAREBONES = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,
}
_LAUNCHERS = (
    environments.LSFEnvironment,
    environments.MPIEnvironment,
    environments.SLURMEnvironment,
    environments.TorchElasticEnvironment,
)


def reconcile(trainer: Any) -> None:
    """Reconcile the settings of a Trainer: remove callbacks that a flag rules out.

    Args:
        trainer: namespace of the settings; changed in place.

    Raises:
        UserError: a number is out of range, or two flags contradict each other.
    """
    for name, allowed in _RANGES.items():
        if isinstance(value := trainer.get(name), int | float):
            allowed.require(value, f"--trainer.{name}")
    if 0 <= trainer.max_steps < (trainer.min_steps or 0):
        raise UserError(
            f"--trainer.min_steps={trainer.min_steps} is more than --trainer.max_steps="
            f"{trainer.max_steps}, where a run ends; raise the latter."
        )
    if trainer.num_nodes > 1 and not launched():
        raise UserError(
            f"--trainer.num_nodes={trainer.num_nodes} waits for processes on other nodes; start "
            "one on each by torchrun or SLURM, or name the first node in MASTER_ADDR and this "
            "one's number in NODE_RANK."
        )
    if trainer.barebones:
        for name, value in _BAREBONES.items():
            trainer[name] = value
    if trainer.enable_checkpointing is False:
        remove_callbacks(trainer, ModelCheckpoint)
    if trainer.enable_progress_bar is False:
        remove_callbacks(trainer, ProgressBar)
    if trainer.logger in (False, []):
        for name in remove_callbacks(trainer, LearningRateMonitor, DeviceStatsMonitor):
            log.warning("%s steps aside: the run has no logger.", name)


def launched() -> bool:
    """Whether the processes of a run are started by a launcher or the user, not by Lightning."""
    return "MASTER_ADDR" in os.environ or any(each.detect() for each in _LAUNCHERS)


def external_ranks() -> int | None:
    """Return the number of processes that torchrun, SLURM or another launcher started, if any."""
    return next((each().world_size() for each in _LAUNCHERS if each.detect()), None)


def remove_callbacks(trainer: Any, *classes: type) -> list[str]:
    """Remove the callbacks of these classes from the settings; return their names."""
    callbacks = trainer.callbacks or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    resolved = [(each, resolve_name(each.class_path)) for each in callbacks]
    removed = [kind for _, kind in resolved if isinstance(kind, type) and issubclass(kind, classes)]
    trainer.callbacks = [each for each, kind in resolved if kind not in removed]
    return [kind.__name__ for kind in removed]
