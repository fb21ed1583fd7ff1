"""Progress bar."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from triptych.callbacks._resumed_log import logs_step

LOSSES = ("train/loss", "val/loss")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, without epochs.

    A run is one long epoch that ends at max_steps, so Lightning's "Epoch 0/-2" is meaningless.
    Losses are read only in logged steps, as reading them synchronizes with the device; Lightning
    reads metrics that are logged with `prog_bar` in every step.
    """

    _shown: dict[str, Any] | None = None

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        logged = logs_step(trainer, trainer.global_step)
        if self._shown is None or logged or not trainer.training:
            losses = {
                name: value.item()
                for name, value in trainer.callback_metrics.items()
                if name in LOSSES
            }
            self._shown = {**super().get_metrics(trainer, module), **losses}
        return self._shown

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))
