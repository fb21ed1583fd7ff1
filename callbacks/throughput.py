"""Training throughput: steps, samples and FLOPs per second."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych.callbacks._resumed_log import logs_step
from triptych.interfaces import batches_in
from triptych.training.device_peaks import dense_peak, device_name
from triptych.training.flop_counter import StepFlops, step_flops

log = logging.getLogger(__name__)
PREFIX = "throughput"


class Throughput(Callback):
    """Logs training throughput every `log_every_n_steps` steps, over the steps since the last log.

    throughput/samples_per_s and tokens_per_s (prompt tokens of the language model without padding)
    are totals of all devices. tflops_per_device is from FLOPs counted once, on the first batch, and
    mfu is its share of the dense bfloat16 peak, if that is known. peak_memory_gb is of this GPU
    since the start. Validation and other callbacks' work between two windows, such as sample grids
    and checkpoints, are excluded. One device synchronization per window.
    """

    def __init__(self) -> None:
        self._counted = False
        self._flops: StepFlops | None = None
        self._peak: float | None = None
        self._samples, self._read = 0, -1
        self._tokens: Tensor | None = None
        self._since: float | None = None
        self._paused = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        name = device_name(module.device)
        self._peak = dense_peak(name)
        if self._peak is None:
            log.info("no MFU is logged: the peak of this device (%s) is not known.", name)
        self._counted = False
        self._begin()

    def _begin(self) -> None:
        """Start a new window with the next batch."""
        self._samples, self._tokens, self._since, self._paused = 0, None, None, 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._counted:
            self._counted, self._flops = True, step_flops(trainer, module, batch)
            if module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(module.device)
        if self._since is None:
            self._since = now(module.device)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for each in batches_in(batch):
            self._samples += len(each)
            mask = getattr(each, "attention_mask", None)
            if mask is not None:
                self._tokens = mask.sum() if self._tokens is None else self._tokens + mask.sum()
        step = trainer.global_step
        if logs_step(trainer, step) and step != self._read:
            self._read = step
            module.log_dict(self._speeds(trainer, module), on_step=True, on_epoch=False)
            self._begin()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._since is not None:
            self._paused -= now(module.device)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._since is not None:
            self._paused += now(module.device)

    def _speeds(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Values of the current window by name in the log."""
        device = module.device
        seconds = now(device) - self._since - self._paused
        tokens = 0.0 if self._tokens is None else float(self._tokens)
        counts = torch.tensor([self._samples, tokens], dtype=torch.float32, device=device)
        samples, tokens = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        speeds = {"samples_per_s": samples / seconds}
        if self._tokens is not None:
            speeds["tokens_per_s"] = tokens / seconds
        if self._flops is not None:
            per_second = self._flops.per_sample * self._samples / seconds
            speeds["tflops_per_device"] = per_second / 1e12
            if self._peak is not None:
                speeds["mfu"] = per_second / self._peak
        if device.type == "cuda":
            speeds["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        return {f"{PREFIX}/{name}": value for name, value in speeds.items()}


def now(device: torch.device) -> float:
    """Time in seconds, after a synchronization with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
