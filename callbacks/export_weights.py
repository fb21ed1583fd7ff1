"""Export of the trained weights as safetensors, for the next stage and for inference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer

from triptych.checkpoints import atomic_checkpoint, full_name, save_weights
from triptych.checkpoints.run_folder import of_trainer
from triptych.training.fsdp import gather_state_dict

log = logging.getLogger(__name__)


class ExportWeights(Callback):
    """Export of the trained parameters and buffers to weights.safetensors at the end of a fit.

    runs/PRESET/STAGE/weights.safetensors, which the next stage reads, is a link to the file of the
    latest run. A fit with nothing left to train exports only if the file is missing.

    Args:
        filename: name of the file inside the run's folder.
        dtype: dtype of the floating-point tensors in the file.
        leave_out: excluded parts, such as the heads that are used only to train the encoder.
    """

    def __init__(
        self,
        filename: str = "weights.safetensors",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        leave_out: tuple[str, ...] = ("encoding",),
    ) -> None:
        self.filename, self.dtype = filename, getattr(torch, dtype)
        self.leave_out = leave_out
        self.path: Path | None = None
        self._trained = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        folder = of_trainer(trainer)  # collective: before any rank returns
        names = module.trained_state().keys()
        state = trainer.strategy.lightning_module_state_dict()  # collective if sharded
        state = {name: tensor for name, tensor in state.items() if name in names}
        state = gather_state_dict(state, keep=trainer.is_global_zero)
        if folder is None or not trainer.is_global_zero:
            return
        if trainer.global_step == 0:
            log.warning("nothing was trained, so %s is not written.", self.filename)
            return
        self.path = folder / self.filename
        metadata = {
            "preset": getattr(module, "preset", "custom"),
            "stage": getattr(module, "stage", type(module).__name__),
            "steps": str(trainer.global_step),
        }
        tensors = {
            full_name(name): tensor
            for name, tensor in state.items()
            if full_name(name).split(".")[0] not in self.leave_out
        }
        if self._trained or not self.path.exists():
            save_weights(tensors, self.path, metadata, self.dtype)
        if atomic_checkpoint.run_number(self.path.parent) >= 0:
            atomic_checkpoint.link_latest(self.path.parent.parent / self.filename)
        log.info("trained weights: %s", self.path)
