"""Verification that frozen parameters stay unchanged."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych.callbacks._skip_step import local
from triptych.utils.errors import UserError

CHUNK = 1 << 24  # elements summed at a time, as int64 takes four times the memory of bfloat16


class FrozenCheck(Callback):
    """Ends the run if a frozen parameter, or a buffer of a frozen module, has changed.

    Compares checksums of each tensor's bits, computed on the device: the sum of its words, and the
    sum of its words weighted by their positions. A change of one word is always detected, any other
    change with a probability of about 1 - 2^-64.

    Args:
        every_n_steps: number of steps between checks; null checks only at the end.
    """

    def __init__(self, every_n_steps: int | None = 1000) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(
                f"FrozenCheck: every_n_steps must be 1 or more, or null, not {every_n_steps}."
            )
        self.every_n_steps = every_n_steps
        self._names: list[str] = []
        self._start: Tensor | None = None
        self._checked = -1

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        frozen = frozen_tensors(module)
        self._names, self._start = list(frozen), checksums(frozen)
        self._checked = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._checked:
            self._check(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._checked:
            self._check(trainer, module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        since, self._checked = self._checked, trainer.global_step
        tensors = frozen_tensors(module)
        gone = sorted(set(self._names) - set(tensors))
        if not gone:
            now = checksums({name: tensors[name] for name in self._names})
            gone = [
                self._names[n] for n in (now != self._start).any(1).nonzero().flatten().tolist()
            ]
        if trainer.strategy.reduce_boolean_decision(not gone, all=True):
            return
        where = gone[0] if gone else "a tensor of another rank"
        raise UserError(
            f"{where} is frozen, but it changed between step {since} and step "
            f"{trainer.global_step}, with {max(0, len(gone) - 1)} other tensors; something writes "
            "to it in training: checkpoints since then are not of the model that began."
        )


def frozen_tensors(module: LightningModule) -> dict[str, Tensor]:
    """Frozen parameters, and buffers of modules with parameters of which none is trainable."""
    tensors = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    for path, submodule in module.named_modules():
        parameters = list(submodule.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            tensors |= {f"{path}.{name}": b for name, b in submodule.named_buffers(recurse=False)}
    return tensors


@torch.no_grad()
def checksums(tensors: dict[str, Tensor]) -> Tensor:
    """Checksums int64 [tensors, 2] on the device; of sharded tensors, of this rank's shards."""
    rows = [checksum(local(tensor)) for tensor in tensors.values()]
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.int64)


def checksum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's words, and sum weighted by their positions, int64 [2]."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().contiguous().flatten().view(words[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK].to(torch.int64)
        positions = torch.arange(start + 1, start + 1 + len(chunk), device=tensor.device)
        sums += torch.stack([chunk.sum(), (chunk * positions).sum()])
    return sums
