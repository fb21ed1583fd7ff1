"""FLOP counter of a training step, forward and backward, by component."""

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

OTHER = "other"  # outside of all components: losses, arithmetic between components


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of everything that `call` computes, backward passes included; also on the meta device.

    Uses torch's counter, which counts matrix products, convolutions and attention; the rest is
    negligible.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step on one device, by component; a multiply-add is two."""

    samples: int
    forward: dict[str, int]
    backward: dict[str, int]

    @property
    def per_sample(self) -> float:
        """Forward and backward FLOPs of all components per sample."""
        return (sum(self.forward.values()) + sum(self.backward.values())) / self.samples


_COUNTED: WeakKeyDictionary[Trainer, StepFlops] = WeakKeyDictionary()


def step_flops(trainer: Trainer, module: LightningModule, batch: Any) -> StepFlops | None:
    """FLOPs of a step, counted once per run by a discarded step on `batch`; collective.

    None for a module without a method `step` (batch -> loss and metrics), for one whose steps
    differ (`steps_are_alike`), and under FSDP1, which computes only with the module that Lightning
    wrapped.
    """
    if not hasattr(module, "step") or not getattr(module, "steps_are_alike", True):
        return None
    if isinstance(trainer.strategy, FSDPStrategy):
        return None
    if trainer not in _COUNTED:
        _COUNTED[trainer] = count(trainer, module, batch)
    return _COUNTED[trainer]


def count(trainer: Trainer, module: LightningModule, batch: Any) -> StepFlops:
    """Count the FLOPs of a step, without side effects on parameters, buffers and random state.

    Counted as in `count_flops`, without compilation. Gradients are cleared.
    """
    batches = batches_in(batch)
    counter = FlopCounterMode(display=False)
    components = _Components(module, counter)
    with _undone(module), torch.compiler.set_stance("force_eager"), counter, components.hooked():
        with trainer.precision_plugin.forward_context():
            loss = torch.stack([module.step(each)[0] for each in batches]).sum()
        components.begin_backward()
        loss.backward()
        components.settle()
    number = sum(map(len, batches))
    return StepFlops(number, dict(components.forward), dict(components.backward))


@contextmanager
def _undone(module: LightningModule) -> Iterator[None]:
    """Afterwards clear gradients, and restore buffers (such as running means) and random state."""
    devices = [module.device] if module.device.type == "cuda" else []
    learning = (m for m in module.modules() if m.training)
    buffers = [(b, b.clone()) for m in learning for b in m.buffers(recurse=False)]
    with torch.random.fork_rng(devices):
        yield
    for parameter in module.parameters():
        parameter.grad = None
    for buffer, before in buffers:
        buffer.copy_(before)


class _Components:
    """Attribution of counted FLOPs to components of the model.

    In the forward pass they belong to the component whose module runs; in the backward pass to the
    component whose output gradient was computed last, as autograd visits components in reverse.
    """

    def __init__(self, module: LightningModule, counter: FlopCounterMode) -> None:
        self.forward: dict[str, int] = defaultdict(int)
        self.backward: dict[str, int] = defaultdict(int)
        self._names = {m: component_of(module, path) for path, m in module.named_modules() if path}
        self._counter, self._counted = counter, 0
        self._running, self._now = [OTHER], self.forward

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Install hooks on every module."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin_backward(self) -> None:
        """Attribute further FLOPs to the backward pass."""
        self.settle()
        self._now = self.backward

    def settle(self) -> None:
        """Attribute the FLOPs counted since the last call."""
        total = self._counter.get_total_flops()
        if total > self._counted:
            self._now[self._running[-1]] += total - self._counted
        self._counted = total

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.settle()
        self._running.append(self._names.get(module, self._running[-1]))

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.settle()
        component = self._running.pop()
        if component == self._running[-1]:
            return
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._enter_backward(component))

    def _enter_backward(self, component: str) -> None:
        self.settle()
        self._running[-1] = component
