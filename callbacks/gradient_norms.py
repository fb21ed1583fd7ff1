"""Gradient norms of the model and of each component."""

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
    """Logs the L2 norms grad_norm/COMPONENT and grad_norm/all before gradient clipping.

    Only in logged steps (`log_every_n_steps`), or one in `every_n_logs` of them, without an
    additional device synchronization. Disabled under FSDP1, which flattens parameters.

    Args:
        every_n_logs: number of logged steps between norms.
    """

    def __init__(self, every_n_logs: int = 1) -> None:
        if every_n_logs < 1:
            raise UserError(f"GradientNorms: every_n_logs must be 1 or more, not {every_n_logs}.")
        self.every_n_logs = every_n_logs
        self._components: dict[str, list[Tensor]] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._components = {}
        if isinstance(trainer.strategy, FSDPStrategy):
            return
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._components.setdefault(component_of(module, name), []).append(parameter)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not logs_step(trainer, trainer.global_step + 1, self.every_n_logs):
            return
        norms = {name: norm_of(parameters) for name, parameters in self._components.items()}
        norms = {name: norm for name, norm in norms.items() if norm is not None}
        if norms:
            norms["all"] = torch.stack(list(norms.values())).norm()
        shown = {f"grad_norm/{name}": norm for name, norm in norms.items()}
        module.log_dict(shown, on_step=True, on_epoch=False)


def norm_of(parameters: list[Tensor]) -> Tensor | None:
    """L2 norm of the parameters' gradients, a scalar; None if there is no gradient.

    For sharded parameters, the norm of the whole gradient; collective.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
