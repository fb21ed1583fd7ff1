"""Where a run's checkpoints go."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with this project's habits.

    A checkpoint every `every` steps, the newest also as last.ckpt, and one more when the run is
    interrupted (Ctrl-C), told to end (SIGTERM) or fails, so that `--ckpt_path=last` goes on from
    there.

    Args:
        every: steps between checkpoints.
        keep: how many of them stay; -1 keeps all.
    """

    def __init__(self, every: int = 500, keep: int = 1) -> None:
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every,
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_last=True,
            save_on_exception=True,
            auto_insert_metric_name=False,
        )
        self._told_to_end = False

    # Lightning answers a SIGTERM with a broadcast inside of the signal handler. In the middle of a
    # step the other ranks wait for the gradients of this one instead: all hang until they are
    # killed, and last.ckpt stays what it was. So with several processes we only note the signal,
    # and all ranks end after the same step. A single process needs none of this.

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._told_to_end = False
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)  # Lightning restores what was before the fit

    def _note(self, *_: Any) -> None:
        self._told_to_end = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            return  # done anyway
        if trainer.strategy.reduce_boolean_decision(self._told_to_end, all=False):
            raise SIGTERMException
