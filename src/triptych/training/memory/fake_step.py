"""One training step on fake tensors, with its trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from triptych.interfaces import Batch, LazyModule, batches_in
from triptych.interfaces.batch import READ_BY_THE_HOST
from triptych.training.execution import blocks_of, recompute_blocks
from triptych.training.memory.autocast import CUDAAutocast
from triptych.training.memory.host_numbers import HostNumbers
from triptych.training.memory.storages import StorageCounter, rounded

CPU = torch.device("cpu")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class ParameterSize:
    """A parameter, its gradient and its optimizer state."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trained: bool
    unit: str | None
    """FSDP unit that gathers it; None outside of all units."""
    states: tuple[int, ...] = ()
    """Bytes of each state tensor with the shape of the parameter."""
    scalars: int = 0
    """Number of other state tensors."""

    def nbytes(self, ranks: int = 1) -> int:
        """Bytes of the parameter, or of the largest shard of it."""
        return self._bytes(self.itemsize, ranks)

    def state_bytes(self, ranks: int = 1) -> int:
        """Bytes of its optimizer state, or of the largest shard."""
        numel = max(1, _numel(self.shape))
        sizes = (self._bytes(state // numel, ranks) for state in self.states)
        return sum(sizes) + self.scalars * rounded(4)

    def float32_bytes(self, ranks: int = 1) -> int:
        """Bytes of a float32 copy, or of the largest shard of one: the EMA's."""
        return self._bytes(4, ranks)

    def _bytes(self, itemsize: int, ranks: int) -> int:
        rows = self.shape[0] if self.shape else 1
        return rounded(-(-rows // ranks) * _numel(self.shape[1:]) * itemsize)


def _numel(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * b, shape, 1)


Event = tuple[str, Any]
"""In the order of the step: ("bytes", (change, whether it is independent of the batch size)),
("open" | "close" | "open_backward" | "close_backward", unit) or ("grad", name of a parameter)."""


@dataclass
class StepTrace:
    """Storages of one step in order, without parameters, gradients and optimizer state."""

    batch_size: int
    parameters: list[ParameterSize]
    events: list[Event] = field(default_factory=list)
    optimizer_temporaries: int = 0
    """Peak of what the optimizer's step allocates and frees."""
    buffers: int = 0
    """Bytes of buffers."""


class FakeModel:
    """A built model whose parameters are fake tensors, to trace its steps.

    Args:
        module: a module with a method `step` (batch -> loss and metrics), built on the meta device,
            with frozen parameters in their dtype. It is unusable afterwards.
        make_optimizer: called with the module; gives its optimizer.
        precision: Lightning's `Trainer.precision`.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        precision: str = "32-true",
    ) -> None:
        self.module, self.precision = module, precision
        self._mode = HostNumbers()
        with self._mode:
            _fake_tensors(module)
            self._units = units_of(module)
            states, temporaries = _optimizer_states(module, make_optimizer)
        self._temporaries = temporaries
        owner = {p: unit for unit, (_, ps) in self._units.items() for p in ps}
        self.parameters = [
            ParameterSize(
                name, tuple(p.shape), p.element_size(), p.requires_grad, owner.get(p), *states[name]
            )
            for name, p in module.named_parameters()
        ]
        module.train()

    def trace(
        self, make_batch: Callable[[], Batch | dict[str, Batch]], recompute: bool = False
    ) -> StepTrace:
        """Run one step, forward and backward, and return its trace."""
        module = self.module
        trace = StepTrace(0, self.parameters, optimizer_temporaries=self._temporaries)
        trace.buffers = sum(rounded(b.nbytes) for b in module.buffers())
        counter = StorageCounter(lambda *change: trace.events.append(("bytes", change)))
        counter.ignore(*module.parameters(), *module.buffers())
        dtype = AUTOCAST.get(self.precision)
        autocast = nullcontext() if dtype is None else torch.autocast("cpu", dtype)
        with ExitStack() as stack:
            if recompute:
                stack.enter_context(_recomputed(module))
            stack.enter_context(_marked(self._units, trace.events))
            stack.enter_context(_dropped_gradients(module, trace.events, counter))
            stack.enter_context(self._mode)
            batches = batches_in(make_batch())
            stack.enter_context(counter)
            stack.enter_context(CUDAAutocast())
            # prompts; in joint training, of each objective
            trace.batch_size = max(len(each.input_ids) for each in batches)
            for tensor in _on_the_device(batches):
                counter.add(tensor)
            with autocast:
                loss = torch.stack([module.step(batch)[0] for batch in batches]).sum()
            counter.constant_shapes = frozenset(p.shape for p in self.parameters if p.trained)
            torch.autograd.backward(loss)  # `Tensor.backward` would take the modes out
            del loss
        return trace


def _on_the_device(batches: list[Batch]) -> list[Tensor]:
    """Tensors of batches that are moved to the device."""
    fields = [
        value
        for batch in batches
        for name, value in vars(batch).items()
        if name not in READ_BY_THE_HOST
    ]
    return [each for each in tree_leaves(fields) if isinstance(each, Tensor)]


def units_of(module: nn.Module) -> dict[str, tuple[nn.Module, list[nn.Parameter]]]:
    """Return the FSDP units by path, with the parameters that each gathers; see `fsdp.shard`."""
    names = {each: path for path, each in module.named_modules()}
    units: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {}
    taken: set[nn.Parameter] = set()
    parts = [each for each in module.modules() if isinstance(each, LazyModule) and each.is_built]
    for part in reversed(parts):
        for unit in [*part.blocks(), *part.called_modules()]:
            own = [p for p in unit.parameters() if p not in taken]
            if own and names[unit] not in units:
                taken |= set(own)
                units[names[unit]] = (unit, own)
    return units


def _fake_tensors(module: nn.Module) -> None:
    """Give parameters on the meta device, and buffers, fake memory on the CPU."""
    created: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for each in module.modules():
        for name, p in each.named_parameters(recurse=False, remove_duplicate=False):
            if p not in created:
                created[p] = nn.Parameter(torch.empty_like(p, device=CPU), p.requires_grad)
            each._parameters[name] = created[p]
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = torch.empty_like(buffer, device=CPU)


def _optimizer_states(
    module: nn.Module, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> tuple[dict[str, tuple[tuple[int, ...], int]], int]:
    """Return by parameter the sizes of its state tensors, and the peak of temporary storages."""
    states: dict[str, tuple[tuple[int, ...], int]] = {
        n: ((), 0) for n, _ in module.named_parameters()
    }
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return states, 0
    optimizer = make_optimizer(module)
    for parameter in trained.values():
        parameter.grad = torch.empty_like(parameter)
    with StorageCounter() as counter:
        optimizer.step()  # creates the state, and may need more for a moment
    for name, parameter in trained.items():
        parameter.grad = None
        tensors = [t for t in optimizer.state[parameter].values() if isinstance(t, Tensor)]
        same = tuple(t.nbytes for t in tensors if t.shape == parameter.shape and t.dim())
        states[name] = (same, len(tensors) - len(same))
    return states, counter.peak - counter.now


@contextmanager
def _recomputed(module: nn.Module) -> Iterator[None]:
    for block in blocks_of(module):  # no mode of functions is active where torch recomputes
        block.forward = CUDAAutocast.inside(block.forward)
    recompute_blocks(module)
    try:
        yield
    finally:
        for block in blocks_of(module):
            vars(block).pop("forward", None)


@contextmanager
def _dropped_gradients(
    module: nn.Module, events: list[Event], counter: StorageCounter
) -> Iterator[None]:
    """Record each gradient when it is complete, and drop it: its place depends on the strategy."""

    def drop(name: str, parameter: Tensor) -> None:
        counter.constant(parameter.grad)
        parameter.grad = None
        events.append(("grad", name))

    handles = [
        p.register_post_accumulate_grad_hook(functools.partial(drop, name))
        for name, p in module.named_parameters()
        if p.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked(units: dict[str, tuple[nn.Module, Any]], events: list[Event]) -> Iterator[None]:
    """Record when a unit starts and ends to compute, forward and backward, as FSDP2's hooks do."""
    undo: list[Callable[[], None]] = []

    def start(unit: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if torch.is_grad_enabled():
            args, kwargs = _ending(lambda: events.append(("close_backward", unit)), args, kwargs)
        events.append(("open", unit))
        return args, kwargs

    def end(unit: str, outputs: Any) -> None:
        events.append(("close", unit))
        if not torch.is_grad_enabled():
            return
        started: list[str] = []

        def start_backward(gradient: Tensor) -> None:
            if not started:
                started.append(unit)
                events.append(("open_backward", unit))

        for tensor in _differentiable(outputs):
            tensor.register_hook(start_backward)

    def mark(unit: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def marked(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = start(unit, args, kwargs)
            outputs = call(*args, **kwargs)
            end(unit, outputs)
            return outputs

        return marked

    def hook(unit: str, module: nn.Module) -> None:
        # not in place of `forward`: what other hooks compute belongs to the same call
        before = module.register_forward_pre_hook(
            lambda _, args, kwargs: start(unit, args, kwargs), with_kwargs=True
        )
        after = module.register_forward_hook(lambda _, args, outputs: end(unit, outputs))
        undo.extend((before.remove, after.remove))

    for path, (module, _) in units.items():
        hook(path, module)
        for name in getattr(module, "fsdp_forward_methods", ()):
            own = vars(module).get(name)
            setattr(module, name, mark(path, getattr(module, name)))
            undo.append(functools.partial(_restore, module, name, own))
    try:
        yield
    finally:
        for restore in reversed(undo):
            restore()


class _End(torch.autograd.Function):
    """Identity whose backward pass runs once all gradients of its outputs are there."""

    @staticmethod
    def forward(ctx: Any, end: Callable[[], None], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.end = end
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.end()
        return None, *gradients


def _ending(end: Callable[[], None], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments of a unit such that `end` is called when its backward pass has ended."""
    # a key-value cache is filled in place, so it is not taken apart
    leaves, spec = tree_flatten((args, kwargs), lambda x: not isinstance(x, tuple | list | dict))
    chosen = [n for n, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]
    if chosen:
        marked = _End.apply(end, *(leaves[n] for n in chosen))
        for number, tensor in zip(chosen, marked, strict=True):
            leaves[number] = tensor
    return tree_unflatten(leaves, spec)


def _restore(module: nn.Module, name: str, own: Any) -> None:
    if own is None:
        vars(module).pop(name, None)
    else:
        setattr(module, name, own)


def _differentiable(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.requires_grad]
