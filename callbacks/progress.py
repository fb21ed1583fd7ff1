"""The progress bar."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bar, counting a run's steps.

    A run is one long epoch that ends at max_steps, whatever passes over the data it makes;
    Lightning's "Epoch 0/-2" would say nothing.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))
