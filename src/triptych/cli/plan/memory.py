"""Peaks of the ways to run a stage on a card, and the largest batch that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from triptych.cli.plan.request import STRATEGIES, PlanRequest
from triptych.modules import UnifiedModule
from triptych.modules.unused_parts import unused_parts
from triptych.training.execution import cast_frozen
from triptych.training.freezing import freeze_all_but
from triptych.training.memory.fake_step import FakeModel, StepTrace
from triptych.training.memory.placement import USABLE, frozen_placement
from triptych.training.memory.replay import Layout, StepMemory, Strategy, is_under, replay
from triptych.training.meta_init import parameters_on_meta
from triptych.training.optimizer import make_optimizer
from triptych.training.synthetic_batches import stage_batches

NAMES: dict[Strategy, str] = {
    "single": "one GPU",
    "ddp": "DDP",
    "shard": "FSDP2",
    "replicate": "FSDP2, frozen parameters replicated",
}
MAX_BATCH = 4096
FEW = 3
"""Samples in the trace of a step that shows images, which then takes a fraction of the time: the
vision tower computes window by window. What follows for other batch sizes is within 1%."""

SOME = 8
"""Samples in the trace of a step with stories, whose images are dealt among them."""


@dataclass(frozen=True)
class Way:
    """A way to run the stage."""

    strategy: Strategy
    recompute: bool
    cached: bool

    def __str__(self) -> str:
        recompute = ", recompute" if self.recompute else ""
        return f"{NAMES[self.strategy]}{recompute}, {'cached' if self.cached else 'live'} features"


@dataclass(frozen=True)
class WayMemory:
    """A way, its peak at the requested batch and the largest batch that fits the card."""

    way: Way
    memory: StepMemory
    largest_batch: int
    """0 if not even one sample fits."""
    fits: bool


class MemoryPlan:
    """Memory of all ways to run a stage, from two steps on fake tensors.

    Args:
        request: what is planned; its model is unusable afterwards.
    """

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.usable = int(request.gpu.memory * USABLE)
        self._encoder = cached_encoder(request.model)
        contents = replace(request.contents, has_features=True)
        unused = unused_parts(request.model, contents, request.needed)
        self._holds_encoder = "encoder" not in unused
        generation = request.model.generation
        self._encodes_sources = (
            contents.has_sources
            and "generation" in request.model.loss_weights
            and generation.takes_source
        )
        request.model.unused = unused - {"encoder"}  # replayed, with features cached or not
        self._model = fake_model(request.model, request.precision)
        self._traces: dict[bool, StepTrace] = {}

    @property
    def frozen_placement(self) -> Strategy:
        """Placement of frozen parameters under FSDP2, by `execution.frozen_params`."""
        named = self.request.model.execution.frozen_params
        if named != "auto":
            return named
        cached = self.caches and self.request.contents.has_features
        skipped = self._encoder if cached and not self._holds_encoder else None
        parameters = [p for p in self._model.parameters if not p.trained]
        frozen = sum(p.nbytes() for p in parameters if not is_under(p.name, skipped))
        if not frozen:
            return "shard"
        return frozen_placement(frozen, self.request.gpu.memory)

    @property
    def caches(self) -> bool:
        """Whether the stage can take cached features."""
        return self._encoder is not None

    def requested(self) -> Way:
        """Return the way that the request describes."""
        strategy = STRATEGIES[self.request.hardware]
        if strategy == "shard" and self.request.hardware == "fsdp2":
            strategy = self.frozen_placement
        recompute = self.request.model.execution.activation_checkpointing
        return Way(strategy, recompute, self.caches and self.request.contents.has_features)

    def ways(self) -> list[Way]:
        """Return the ways to run the stage with this number of GPUs, cheapest first."""
        strategies: list[Strategy] = ["single"] if self.request.devices == 1 else ["ddp"]
        if self.request.devices > 1 and "encoding" not in self.request.model.loss_weights:
            some_frozen = any(not p.trained for p in self._model.parameters)
            strategies += ["replicate", "shard"] if some_frozen else ["shard"]
        return [
            Way(strategy, recompute, cached)
            for recompute in (False, True)
            for strategy in strategies
            for cached in ([True, False] if self.caches else [False])
        ]

    def memory(self, way: Way, batch_size: int | None = None) -> StepMemory:
        """Return the memory of one GPU in a step, by default of the requested batch size."""
        request = self.request
        layout = Layout(way.strategy, request.devices, request.ema)
        skipped = self._encoder if way.cached and not self._encodes_sources else None
        return replay(
            self.trace(way.recompute),
            layout,
            batch_size or request.batch_size,
            skipped,
            holds_skipped=self._holds_encoder,
        )

    def measured(self, way: Way) -> WayMemory:
        """Return the memory of a way, and its largest batch."""
        memory = self.memory(way)
        return WayMemory(way, memory, self.largest_batch(way), memory.peak <= self.usable)

    def largest_batch(self, way: Way) -> int:
        """Return the largest batch size of one GPU that fits the card, 0 if none does."""
        batch = MAX_BATCH
        while batch > 0 and (peak := self.memory(way, batch).peak) > self.usable:
            # Newton's method on a maximum of straight lines: from above, it never goes too far
            slope = max(1, peak - self.memory(way, max(1, batch - 1)).peak)
            batch = min(batch - 1, math.floor(batch - (peak - self.usable) / slope))
        return max(batch, 0)

    def trace(self, recompute: bool) -> StepTrace:
        """Return the trace of a step with features computed, counted once."""
        if recompute not in self._traces:
            request = self.request
            shows = request.edits or "understanding" in request.model.loss_weights
            size = min(FEW, request.batch_size) if shows else request.batch_size
            if request.stories:
                size = SOME
            batches = partial(
                stage_batches, request.model, size, edits=request.edits, stories=request.stories
            )
            # not the first step, in which some parts set themselves up
            self._traces[recompute] = self._model.trace(partial(batches, step=1), recompute)
        return self._traces[recompute]


def fake_model(model: UnifiedModule, precision: str) -> FakeModel:
    """Build the model of a stage on the meta device, and give it fake parameters."""
    with parameters_on_meta():
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    dtype = model.execution.frozen_dtype
    mixed = precision == "bf16-mixed"
    cast_frozen(model, getattr(torch, dtype or ("bfloat16" if mixed else "float32")))
    return FakeModel(model, lambda module: make_optimizer(module, module.optimization), precision)


def cached_encoder(model: UnifiedModule) -> str | None:
    """Return the path of the encoder whose features can be cached; None if there is none."""
    encoder = model._encoder_of_targets()
    names = {module: name for name, module in model.named_modules()}
    return names.get(encoder) if encoder is not None else None
