"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from triptych.callbacks._skip_step import has_gradients, local, was_skipped
from triptych.callbacks.export_weights import ExportWeights
from triptych.checkpoints.weight_checks import require_sound
from triptych.training.fsdp import gather_state_dict, shard_like
from triptych.utils.errors import UserError


class EMA(Callback):
    """Exponential moving average, in float32, of the trainable parameters.

        average <- average + (1 - decay) * (weights - average)      after each step

    Always in float32: in bfloat16 a relative change of 1e-4 is below the precision. Validation,
    test and prediction use the average; sample grids are made with both. A fit also writes
    weights_ema.safetensors. A skipped step does not change the average. For sharded parameters each
    rank stores its shard.

    A checkpoint has the average in `checkpoint["callbacks"]["EMA"]`: "average" (full float32
    tensors by parameter name) and "steps".

    Args:
        decay: weight of the old average in a step.
        warmup: whether to start with a smaller decay, to forget the random initialization: in step
            n it is min(decay, (1 + n) / (10 + n)).
        export: whether to write weights_ema.safetensors at the end of a fit.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True, export: bool = True) -> None:
        if not 0 < decay < 1:
            raise UserError(f"EMA: decay must lie between 0 and 1, not {decay}.")
        self.decay, self.warmup = decay, warmup
        self._export = ExportWeights("weights_ema.safetensors") if export else None
        self.average: dict[str, Tensor] = {}
        """float32 tensors by parameter name, sharded like these; set when training starts."""
        self.steps = 0
        self._parameters: list[Tensor] = []
        self._loaded: dict[str, Tensor] | None = None
        self._raw: list[Tensor] | None = None  # the weights, while the average is in use
        self._hooks: list[Any] = []
        self._saves = True  # the first rank

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "EMA cannot follow the flattened parameters of FSDP1; use FSDP2 "
                "(triptych.training.strategies.ShardedStrategy) or DDP, or leave the callback out."
            )
        self._saves = trainer.is_global_zero

    # Updates ------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._attach(module)
        if self._export is not None:
            self._export.on_train_start(trainer, module)
        # after the step, for any order of callbacks
        self._hooks = [o.register_step_post_hook(self._follow) for o in trainer.optimizers]

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @torch.no_grad()
    def _attach(self, module: LightningModule) -> None:
        """Start from the current weights, or from the average of a checkpoint."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        if self._loaded is None:
            self.average = {name: p.detach().float().clone() for name, p in trained.items()}
            return
        loaded, self._loaded = self._loaded, None
        if different := loaded.keys() ^ trained.keys():
            raise UserError(
                f"the checkpoint's EMA and this run disagree on {min(different)}; resume it with "
                "the configuration that made it."
            )
        self.average = {
            n: shard_like(loaded[n], p).to(p.device).clone() for n, p in trained.items()
        }

    @torch.no_grad()
    def _follow(self, optimizer: Optimizer, *_: Any) -> None:
        """Update the average after a step of the optimizer."""
        if not has_gradients(optimizer):
            return
        self.steps += 1
        weight: Any = 1 - self.decay_at(self.steps)
        skipped = was_skipped(optimizer)
        average = [local(tensor) for tensor in self.average.values()]
        current = [local(p).float() for p in self._parameters]
        if skipped is None:
            torch._foreach_lerp_(average, current, weight)
        else:  # without synchronization: weight 0 for a skipped step
            torch._foreach_lerp_(average, current, [weight * (1 - skipped)] * len(average))

    def decay_at(self, step: int) -> float:
        """Decay in a step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    # Use of the average -------------------------------------------------------------------------

    @contextmanager
    def swapped(self, module: LightningModule) -> Iterator[None]:
        """Use the average as the module's weights inside the block."""
        self._use(module)
        try:
            yield
        finally:
            self._give_back()

    @torch.no_grad()
    def _use(self, module: LightningModule) -> None:
        if self._loaded is not None:  # a checkpoint is validated, not trained
            self._attach(module)
        if not self.average or self._raw is not None:
            return
        self._raw = [local(p).clone() for p in self._parameters]
        for parameter, average in zip(self._parameters, self.average.values(), strict=True):
            local(parameter).copy_(local(average))

    @torch.no_grad()
    def _give_back(self) -> None:
        if self._raw is None:
            return
        for parameter, raw in zip(self._parameters, self._raw, strict=True):
            local(parameter).copy_(raw)
        self._raw = None

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._use(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give_back()

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._use(module)

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give_back()

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._use(module)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give_back()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._give_back()  # before Checkpoint, which comes last, saves the weights
        self._detach()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._export is not None:
            with self.swapped(module):
                self._export.on_fit_end(trainer, module)

    # Checkpoints --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": gather_state_dict(self.average, keep=self._saves)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in state["average"].items():
            require_sound(name, tensor, "the checkpoint's EMA")
        self.steps, self._loaded = state["steps"], state["average"]
