"""Guards: skip steps that would harm the weights, and report their samples."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from triptych.callbacks._skip_step import gradients, reset, skip_step
from triptych.interfaces import batches_in
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)

UNLOGGED = 50
"""Number of steps between two reads of the flags if no step is logged."""


@dataclass
class Step:
    """A step whose flag was not read yet."""

    number: int
    keys: list[str]
    bad: Tensor
    """Flag, a bool scalar on the device, equal on all ranks."""


class Guard(Callback):
    """Checks each step after its backward pass; a bad step only increments the step count.

    Weights, optimizer and EMA stay bit-identical. All ranks decide together: one bad rank suffices.
    No device synchronization per step: flags are read every `log_every_n_steps` steps, and bad
    steps are reported then, with the keys of their samples. Disabled under float16, whose scaler
    skips steps by itself.

    Args:
        patience: number of consecutive bad steps that ends the run.
    """

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise UserError(f"{type(self).__name__}: patience must be 1 or more, not {patience}.")
        self.patience = patience
        self.skipped = 0
        """Number of skipped steps, of those whose flags were read."""
        self.in_a_row = 0
        self._loss: Tensor | None = None
        self._keys: list[str] = []
        self._unread: list[Step] = []

    @abstractmethod
    def is_bad(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a step is bad, a bool scalar.

        Args:
            loss: loss of this rank, a float32 scalar.
            norm: norm of this rank's gradients, a float32 scalar.
        """

    @abstractmethod
    def reason(self) -> str:
        """Reason why a step is bad: "the loss ..."."""

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        synchronizes = module.device.type != "cpu"
        if not synchronizes or trainer.global_step % (trainer.log_every_n_steps or UNLOGGED) == 0:
            self._read(trainer)  # before the step: a run may end only between two steps
        self._keys += keys_of(batch)
        for optimizer in trainer.optimizers:
            reset(optimizer)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        # sum over micro-batches; the mean over ranks is the loss of the step
        loss = loss.detach().float()
        self._loss = loss.clone() if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        loss, keys = self._loss, self._keys
        self._loss, self._keys = None, []
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        norm = torch.nn.utils.get_total_norm(gradients(optimizer)).to(loss.device)
        bad = agreed(trainer, self.is_bad(loss, norm))
        self.judged(loss, bad)
        skip_step(optimizer, bad)
        self._unread.append(Step(trainer.global_step + 1, keys, bad))

    def judged(self, loss: Tensor, bad: Tensor) -> None:
        """Update a guard with state by the loss of a step and whether it was bad."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._read(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def _read(self, trainer: Trainer) -> None:
        """Report bad steps since the last read; end the run after too many."""
        if not self._unread:
            return
        flags = torch.stack([step.bad for step in self._unread]).tolist()
        steps, self._unread = self._unread, []
        for step, bad in zip(steps, flags, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if not bad:
                continue
            self.skipped += 1
            names = ", ".join(step.keys)
            log.warning(
                "step %d was not taken: %s. Its samples%s: %s",
                step.number,
                self.reason(),
                f" on rank {trainer.global_rank}" if trainer.world_size > 1 else "",
                names,
            )
            if self.in_a_row >= self.patience:
                raise UserError(
                    f"{type(self).__name__}: {self.reason()} in {self.in_a_row} steps in a row, "
                    f"up to step {step.number} (samples {names}); weights and optimizer are those "
                    "of before; look at these samples, or lower --model.optimization.lr."
                )


class NonFiniteGuard(Guard):
    """Guard that skips steps whose loss or gradient norm is not finite.

    Args:
        patience: number of consecutive such steps that ends the run.
    """

    def is_bad(self, loss: Tensor, norm: Tensor) -> Tensor:
        return ~(torch.isfinite(loss) & torch.isfinite(norm))

    def reason(self) -> str:
        return "the loss or its gradient was not finite"


class SpikeGuard(Guard):
    """Guard that skips steps with a loss far above its running mean.

    Args:
        factor: multiple of the mean above which a loss is a spike.
        memory: approximate number of steps in the running mean; no earlier step is skipped.
        patience: number of consecutive spikes that ends the run.
    """

    def __init__(self, factor: float = 3.0, memory: int = 100, patience: int = 10) -> None:
        super().__init__(patience)
        if factor <= 1 or memory < 1:
            raise UserError("SpikeGuard: factor must be above 1, memory 1 or more.")
        self.factor, self.memory = factor, memory
        self.mean: Tensor | None = None
        """Running mean of the losses of good steps, a float32 scalar."""
        self.seen: Tensor | None = None
        """Number of good steps, a float32 scalar."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        zero = torch.zeros((), device=module.device)
        self.mean = zero if self.mean is None else self.mean.to(module.device)
        self.seen = zero.clone() if self.seen is None else self.seen.to(module.device)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        if (
            trainer.world_size > 1
        ):  # one mean for all ranks, as a checkpoint has only that of the first
            torch.distributed.all_reduce(self._loss)
            self._loss /= trainer.world_size
        super().on_before_optimizer_step(trainer, module, optimizer)

    def is_bad(self, loss: Tensor, norm: Tensor) -> Tensor:
        return (self.seen >= self.memory) & (loss > self.factor * self.mean)

    def judged(self, loss: Tensor, bad: Tensor) -> None:
        seen = self.seen + 1
        mean = self.mean + (loss - self.mean) / seen.clamp(max=self.memory)
        taken = ~bad & torch.isfinite(loss)
        self.mean = torch.where(taken, mean, self.mean)
        self.seen = torch.where(taken, seen, self.seen)

    def reason(self) -> str:
        return f"the loss was above {self.factor:g} times its running mean"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean, self.seen = state["mean"], state["seen"]


def agreed(trainer: Trainer, bad: Tensor) -> Tensor:
    """Whether the step is bad on any rank, without synchronization with the host."""
    if trainer.world_size == 1:
        return bad
    flag = bad.float()
    # not Lightning's reduce, which has a barrier on the host
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return flag > 0


def keys_of(batch: Any) -> list[str]:
    """Keys of the samples of a Batch, or of the batches of a joint step."""
    return [key for each in batches_in(batch) for key in getattr(each, "keys", [])]
