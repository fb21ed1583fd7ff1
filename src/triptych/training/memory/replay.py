"""Peak memory and traffic of a traced step under DDP and FSDP2."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

from triptych.training.memory.fake_step import ParameterSize, StepTrace

Strategy = Literal["single", "ddp", "shard", "replicate"]
"""One device; DDP; FSDP2 with frozen parameters sharded, or replicated on each rank."""


@dataclass(frozen=True)
class Layout:
    """Distribution of a model over the ranks of a run.

    Args:
        strategy: see `Strategy`.
        ranks: number of ranks.
        ema: whether each rank keeps a float32 average of what it trains.
    """

    strategy: Strategy
    ranks: int
    ema: bool = False

    def shards(self, parameter: ParameterSize) -> int:
        """Return the number of ranks that share a parameter; 1 if each has all of it."""
        sharded = self.strategy == "shard" or (self.strategy == "replicate" and parameter.trained)
        return self.ranks if sharded else 1


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one rank at the peak of a step, and what it sends and receives in one.

    `activations` is the rest at the peak, with gathered parameters and communication buffers.
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    all_gather_bytes: int = 0
    reduce_bytes: int = 0
    """Bytes of gradients that are reduced: all-reduce of DDP, reduce-scatter of FSDP2."""

    @property
    def peak(self) -> int:
        """Peak of the step."""
        return self.parameters + self.gradients + self.optimizer + self.ema + self.activations

    @property
    def traffic(self) -> int:
        """Bytes that a rank sends in a step; a ring all-reduce sends a gradient twice."""
        return self.all_gather_bytes + self.reduce_bytes


def replay(
    trace: StepTrace,
    layout: Layout,
    batch_size: int,
    skipped: str | None = None,
    *,
    holds_skipped: bool = False,
) -> StepMemory:
    """Replay a traced step for a layout and a batch size.

    Storages that depend on the batch scale with it. Under FSDP2 a unit is gathered when it
    computes: its all-gather buffer lies beside the copy until the next unit is gathered (forward),
    or until it is copied (backward, where the next unit is gathered ahead).

    Args:
        skipped: path of a unit's part whose forward pass is left out: the encoder, where features
            are cached.
        holds_skipped: whether its parameters are in memory all the same.
    """
    absent = None if holds_skipped else skipped
    held = [p for p in trace.parameters if not is_under(p.name, absent)]
    memory = _Replay(trace, layout, batch_size, skipped).run()
    parameters = trace.buffers + sum(p.nbytes(layout.shards(p)) for p in held)
    return replace(memory, parameters=parameters)


def is_under(name: str, path: str | None) -> bool:
    """Whether a unit or parameter is at a module path or below it; nothing is below None."""
    return path is not None and (name + ".").startswith(path + ".")


class _Replay:
    def __init__(
        self, trace: StepTrace, layout: Layout, batch_size: int, skipped: str | None
    ) -> None:
        self.trace, self.layout, self.skipped = trace, layout, skipped
        self.scale = batch_size / trace.batch_size
        self.parameters = {p.name: p for p in trace.parameters}
        self.gathers: dict[str, int] = defaultdict(int)  # unit -> bytes that it gathers
        self.trained: dict[str, int] = defaultdict(int)  # unit -> bytes of its gradients
        self.expected: dict[str, int] = defaultdict(int)  # unit -> number of its gradients
        for p in trace.parameters:
            if p.unit is not None and layout.shards(p) > 1:
                self.gathers[p.unit] += p.nbytes()
                if p.trained:
                    self.trained[p.unit] += p.nbytes()
                    self.expected[p.unit] += 1
        self.now = self.peak = 0.0
        self.gradients = self.gradients_at_peak = 0
        self.gathered: set[str] = set()
        self.stack: list[str] = []
        self.deferred = 0  # all-gather buffer of the last unit, forward
        self.ahead: str | None = None  # unit gathered ahead, backward
        self.order: list[str] = []  # units in the order of their forward passes with gradient
        self.reducing = 0  # buffer of the last reduce-scatter
        self.full_gradients: dict[str, int] = defaultdict(int)
        self.received = 0

    def run(self) -> StepMemory:
        trace, layout = self.trace, self.layout
        trained = [p for p in trace.parameters if p.trained]
        fsdp = layout.strategy in ("shard", "replicate")
        if layout.strategy == "ddp":  # its buckets are the gradients, and stay
            self.gradients = sum(p.nbytes() for p in trained)
        self._with_backward()
        depth = 0
        for kind, value in trace.events:
            if kind in ("open", "close") and self._is_skipped(value):
                depth += 1 if kind == "open" else -1
                continue
            if kind == "bytes":
                change, constant = value
                # inside of a skipped part only what outlives it counts: it takes the place of
                # the cached features
                self._change(change if constant else change * self.scale, seen=not depth)
            elif kind == "grad":
                self._gradient(self.parameters[value])
            elif fsdp and not depth:
                getattr(self, f"_{kind}")(value)
        for unit in [*self.gathered, *self.full_gradients]:  # no gradient of an input ended them
            self._close_backward(unit)
        states = sum(p.state_bytes(layout.shards(p)) for p in trained)
        every = sum(p.nbytes(layout.shards(p)) for p in trained)
        temporary = trace.optimizer_temporaries / (layout.ranks if fsdp else 1)
        if every + temporary > self.peak + self.gradients_at_peak:
            self.peak, self.gradients_at_peak = temporary, every
        return StepMemory(
            parameters=trace.buffers + sum(p.nbytes(layout.shards(p)) for p in trace.parameters),
            gradients=self.gradients_at_peak,
            optimizer=states,
            ema=sum(p.float32_bytes(layout.shards(p)) for p in trained) if layout.ema else 0,
            activations=round(self.peak),
            all_gather_bytes=self.received,
            reduce_bytes=sum(p.nbytes() for p in trained) if layout.ranks > 1 else 0,
        )

    def _with_backward(self) -> None:
        """Units are gathered ahead in the backward pass in the reverse order of the forward."""
        later = {unit for kind, unit in self.trace.events if kind == "open_backward"}
        closed = [u for kind, u in self.trace.events if kind == "close" and u in later]
        self.order = [unit for unit in closed if self.gathers.get(unit)]

    def _is_skipped(self, unit: str) -> bool:
        return is_under(unit, self.skipped)

    def _change(self, change: float, seen: bool = True) -> None:
        self.now += change
        if seen and self.now + self.gradients > self.peak + self.gradients_at_peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _gradient(self, parameter: ParameterSize) -> None:
        shards = self.layout.shards(parameter)
        if self.layout.strategy == "ddp":
            return
        if shards == 1 or parameter.unit is None:
            self.gradients += parameter.nbytes(shards)
            self._change(0)
            return
        unit = parameter.unit
        self.full_gradients[unit] += 1
        self._change(parameter.nbytes())
        if self.full_gradients[unit] == self.expected[unit] and unit not in self.gathered:
            self._reduce(unit)

    # FSDP2 --------------------------------------------------------------------------------------

    def _open(self, unit: str) -> None:
        self.stack.append(unit)
        size = self.gathers.get(unit, 0)
        if not size or unit in self.gathered:
            return
        self.received += size
        self._change(size)  # the all-gather's buffer, beside the one before it
        self._change(-self.deferred)
        self._change(size)  # the parameters, copied out of it
        self.deferred = size
        self.gathered.add(unit)

    def _close(self, unit: str) -> None:
        self.stack.pop()
        if unit in self.gathered:
            self.gathered.discard(unit)
            self._change(-self.gathers[unit])
        if not self.stack:
            self._change(-self.deferred)
            self.deferred = 0

    def _open_backward(self, unit: str) -> None:
        size = self.gathers.get(unit, 0)
        if not size or unit in self.gathered:
            return
        if self.ahead == unit:
            self.ahead = None
        else:
            self.received += size
            self._change(size)
        self._change(size)
        self._change(-size)
        self.gathered.add(unit)
        if unit in self.order:
            index = len(self.order) - 1 - self.order[::-1].index(unit)
            del self.order[index:]
            if self.order and self.ahead is None and self.order[-1] not in self.gathered:
                self.ahead = self.order[-1]
                self.received += self.gathers[self.ahead]
                self._change(self.gathers[self.ahead])

    def _close_backward(self, unit: str) -> None:
        if unit in self.gathered:
            self.gathered.discard(unit)
            self._change(-self.gathers[unit])
        if self.full_gradients.get(unit):
            self._reduce(unit)

    def _reduce(self, unit: str) -> None:
        """Reduce-scatter the gradients of a unit."""
        size = self.trained[unit]
        self._change(-self.reducing)
        self._change(size)  # its input, copied from the gradients
        self._change(-size)  # the gradients
        self.gradients += size // self.layout.ranks
        self._change(0)
        self.reducing = size
        self.full_gradients[unit] = 0
