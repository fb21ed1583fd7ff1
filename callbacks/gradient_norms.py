"""Gradient norms of the model and of each part."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from triptych.callbacks._resumed_log import logs_step
from triptych.training.component_names import component_of
from triptych.utils.errors import UserError


class GradientNorms(Callback):
    """Logs grad_norm/PART and grad_norm/all, L2, before they are clipped.

    Only in the steps that are logged (`log_every_n_logs`) or a multiple of that; nothing waits for
    the device but the logger. Nothing under FSDP1, whose flattened parameters have no parts.

    Args:
        every_n_logs: of the logged steps, take one in so many.
    """

    def __init__(self, every_n_logs: int = 1) -> None:
        if every_n_logs < 1:
            raise UserError(f"GradientNorms: every_n_logs must be 1 or more, not {every_n_logs}.")
        self.every_n_logs = every_n_logs
        self._parts: dict[str, list[Tensor]] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._parts = {}
        if isinstance(trainer.strategy, FSDPStrategy):
            return
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._parts.setdefault(component_of(module, name), []).append(parameter)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not logs_step(trainer, trainer.global_step + 1, self.every_n_logs):
            return
        norms = {part: norm_of(parameters) for part, parameters in self._parts.items()}
        norms = {part: norm for part, norm in norms.items() if norm is not None}
        if norms:
            norms["all"] = torch.stack(list(norms.values())).norm()
        shown = {f"grad_norm/{part}": norm for part, norm in norms.items()}
        module.log_dict(shown, on_step=True, on_epoch=False)


def norm_of(parameters: list[Tensor]) -> Tensor | None:
    """L2 norm of the parameters' gradients, a scalar; None if there is no gradient.

    For sharded parameters, the norm of the whole gradient: all ranks must call.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
