"""The progress bar."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bar, counting a run's steps.

    A run is one long epoch that ends at max_steps, whatever passes over the data it makes;
    Lightning's "Epoch 0/-2" would say nothing.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))

    _shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Read in training as often as the loggers do: the host waits for the device meanwhile."""
        logged = trainer.global_step % trainer.log_every_n_steps == 0
        if logged or not self._shown or not trainer.training:
            self._shown = super().get_metrics(trainer, pl_module)
        return self._shown
