"""Counts the FLOPs of a training step, forward and backward, part by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from triptych.interfaces import batches_in
from triptych.training.component_names import component_of

OTHER = "other"  # what no part computed: losses, optimizer-free arithmetic between parts


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of all that `call` computes, backward passes included; nothing need be computed on the
    meta device.

    By torch's counter, which knows matrix products, convolutions and attention; the rest is noise
    beside them.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step on one device, by part; a multiplication and an addition are two."""

    samples: int
    forward: dict[str, int]
    backward: dict[str, int]

    @property
    def per_sample(self) -> float:
        """Forward and backward of all parts."""
        return (sum(self.forward.values()) + sum(self.backward.values())) / self.samples


_COUNTED: WeakKeyDictionary[Trainer, StepFlops] = WeakKeyDictionary()


def step_flops(trainer: Trainer, module: LightningModule, batch: Any) -> StepFlops | None:
    """Counted once a run, by a step on `batch` that is thrown away; all ranks must call.

    None for a module that has no `step` (batch -> loss and metrics), as `BaseModule` has, and under
    FSDP1, which computes with the module that Lightning wrapped and with no other.
    """
    if not hasattr(module, "step") or isinstance(trainer.strategy, FSDPStrategy):
        return None
    if trainer not in _COUNTED:
        _COUNTED[trainer] = count(trainer, module, batch)
    return _COUNTED[trainer]


def count(trainer: Trainer, module: LightningModule, batch: Any) -> StepFlops:
    """The FLOPs of a step; parameters, buffers, gradients and random numbers stay as they are.

    Counted as in `count_flops`. Compiled parts are computed without compilation.
    """
    batches = batches_in(batch)
    counter = FlopCounterMode(display=False)
    parts = _Parts(module, counter)
    with _undone(module), torch.compiler.set_stance("force_eager"), counter, parts.watched():
        with trainer.precision_plugin.forward_context():
            loss = torch.stack([module.step(each)[0] for each in batches]).sum()
        parts.turn()
        loss.backward()
        parts.settle()
    return StepFlops(sum(map(len, batches)), dict(parts.forward), dict(parts.backward))


@contextmanager
def _undone(module: LightningModule) -> Iterator[None]:
    """Afterwards no gradients, and buffers (such as running means) and random state as before."""
    devices = [module.device] if module.device.type == "cuda" else []
    learning = (m for m in module.modules() if m.training)
    buffers = [(b, b.clone()) for m in learning for b in m.buffers(recurse=False)]
    with torch.random.fork_rng(devices):
        yield
    for parameter in module.parameters():
        parameter.grad = None
    for buffer, before in buffers:
        buffer.copy_(before)


class _Parts:
    """Attribution of the FLOPs being counted to parts of the model.

    Forward, they belong to the part whose module runs. Backward, they belong to the part whose
    output had its gradient computed last: autograd visits the parts in the opposite order.
    """

    def __init__(self, module: LightningModule, counter: FlopCounterMode) -> None:
        self.forward: dict[str, int] = defaultdict(int)
        self.backward: dict[str, int] = defaultdict(int)
        self._names = {m: component_of(module, path) for path, m in module.named_modules() if path}
        self._counter, self._counted = counter, 0
        self._running, self._now = [OTHER], self.forward

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hooks on every module."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def turn(self) -> None:
        """From here on it is the backward pass."""
        self.settle()
        self._now = self.backward

    def settle(self) -> None:
        """Credit the FLOPs counted since the last call."""
        total = self._counter.get_total_flops()
        if total > self._counted:
            self._now[self._running[-1]] += total - self._counted
        self._counted = total

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.settle()
        self._running.append(self._names.get(module, self._running[-1]))

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.settle()
        part = self._running.pop()
        if part == self._running[-1]:
            return
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._go_back_to(part))

    def _go_back_to(self, part: str) -> None:
        self.settle()
        self._running[-1] = part
