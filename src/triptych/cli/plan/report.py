"""The plan as text and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triptych.cli.plan.cost import MFU, PROMPT_TOKENS, SECONDS_PER_DAY, stage_flops
from triptych.cli.plan.memory import MemoryPlan, WayMemory
from triptych.cli.plan.request import PlanRequest
from triptych.training.memory.placement import USABLE
from triptych.training.prompt_counts import STORY_IMAGES, STORY_TOKENS

NODE = 8
"""GPUs of a node that NVLink connects."""
NETWORK = 50e9
"""Bytes/s of a GPU between nodes: one 400 Gbit/s adapter each."""


@dataclass
class Plan:
    """A plan: memory, time and traffic of a request, and of the other ways to run it."""

    request: PlanRequest
    memory: WayMemory
    table: list[WayMemory]
    flops: tuple[float, float]
    """FLOPs of a sample with cached features, and with live ones."""
    checkpoint_bytes: int
    placement: str | None
    """`frozen_params` as "auto" decides it; None without FSDP2."""

    @property
    def flops_per_sample(self) -> float:
        cached, live = self.flops
        return cached if self.memory.way.cached else live

    @property
    def bandwidth(self) -> float:
        """Bytes/s at which a GPU sends."""
        within = self.request.devices <= NODE
        return self.request.gpu.link if within else min(NETWORK, self.request.gpu.link)

    @property
    def compute_seconds(self) -> float:
        """Seconds of arithmetic in a step, at MFU."""
        return self.flops_per_sample * self.request.batch_size / (MFU * self.request.gpu.peak)

    @property
    def transfer_seconds(self) -> float:
        """Seconds in which a step's bytes are sent; they may overlap with arithmetic."""
        return self.memory.memory.traffic / self.bandwidth

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs, where arithmetic and transfers overlap fully."""
        step = max(self.compute_seconds, self.transfer_seconds)
        return self.request.batch_size * self.request.devices / step

    @property
    def days(self) -> float:
        samples = self.request.steps * self.request.batch_size * self.request.devices
        return samples / self.samples_per_second / SECONDS_PER_DAY

    def refusal(self) -> str | None:
        """Return why the run does not fit and the nearest setting that does; None if it fits."""
        return refusal(self.request, self.memory, self.table)


def make_plan(request: PlanRequest, table: bool = True) -> Plan:
    """Count the memory of all ways, and estimate time and traffic.

    Args:
        table: whether to count other ways than that of the request, even if it fits.
    """
    flops = stage_flops(request.model, request.edits, request.stories)
    plan = MemoryPlan(request)
    asked = plan.requested()
    memory = plan.measured(asked)
    ways = plan.ways() if table or not memory.fits else []
    measured = [plan.measured(way) for way in ways]
    trained = [p for p in plan.trace(asked.recompute).parameters if p.trained]
    saved = sum(p.nbytes() + p.state_bytes() for p in trained)
    saved += sum(p.float32_bytes() for p in trained) if request.ema else 0
    placement = plan.frozen_placement if request.hardware == "fsdp2" else None
    return Plan(request, memory, measured, flops, saved, placement)


def refusal(request: PlanRequest, memory: WayMemory, table: list[WayMemory]) -> str | None:
    """Return why a run does not fit, with the nearest setting that does; None if it fits."""
    if memory.fits:
        return None
    way, size = memory.way, request.batch_size
    usable = request.gpu.memory * USABLE
    reason = (
        f"{request.preset} {request.stage} needs {gb(memory.memory.peak)} GB on each GPU at batch "
        f"{size} ({way}), and {request.gpu.name} has {gb(usable)} GB for tensors"
    )
    remedies = []
    if memory.largest_batch:
        remedies.append(f"--data.batch_size={memory.largest_batch}")
    fitting = [e for e in table if e.fits and e.way.cached == way.cached]
    fitting.sort(key=lambda e: (e.way.strategy != way.strategy, e.way.recompute))
    if fitting:
        flags = flags_of(fitting[0], memory)
        remedies.append(f"{' '.join(flags)} at the same batch")
    elif not way.cached and any(e.fits for e in table if e.way.cached):
        remedies.append("features made ahead by `triptych data features`")
    if not remedies:
        smaller = [e for e in table if e.largest_batch and e.way.cached == way.cached]
        if smaller:
            best = max(smaller, key=lambda e: e.largest_batch)
            flags = [*flags_of(best, memory), f"--data.batch_size={best.largest_batch}"]
            remedies.append(" ".join(flags))
    hint = " or ".join(remedies) or "a card with more memory, or more GPUs with --hardware fsdp2"
    return f"{reason}; what fits is {hint}."


def flags_of(found: WayMemory, asked: WayMemory) -> list[str]:
    """Return the flags of `fit` that change a run from one way to another."""
    flags = []
    if found.way.strategy != asked.way.strategy:
        if found.way.strategy == "ddp":
            flags.append("--hardware ddp")
        else:
            if asked.way.strategy == "ddp":
                flags.append("--hardware fsdp2")
            flags.append(f"--model.execution.frozen_params={found.way.strategy}")
    if found.way.recompute and not asked.way.recompute:
        flags.append("--model.execution.activation_checkpointing=true")
    return flags


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON; memory in bytes of one GPU, times in seconds."""
    request, memory = plan.request, plan.memory.memory
    cached, live = plan.flops
    return {
        "preset": request.preset,
        "stage": request.stage,
        "hardware": request.hardware,
        "devices": request.devices,
        "gpu": request.gpu.name,
        "gpu_memory_bytes": request.gpu.memory,
        "usable_bytes": int(request.gpu.memory * USABLE),
        "batch_size": request.batch_size,
        "stories_ratio": request.stories,
        "precision": request.precision,
        "features": "cached" if plan.memory.way.cached else "live",
        "frozen_params": plan.placement,
        "parameters_bytes": memory.parameters,
        "gradients_bytes": memory.gradients,
        "optimizer_bytes": memory.optimizer,
        "ema_bytes": memory.ema,
        "activations_bytes": memory.activations,
        "peak_bytes": memory.peak,
        "fits": plan.memory.fits,
        "largest_batch": plan.memory.largest_batch,
        "flops_per_sample": plan.flops_per_sample,
        "flops_per_sample_cached": cached,
        "flops_per_sample_live": live,
        "mfu": MFU,
        "samples_per_second": plan.samples_per_second,
        "steps": request.steps,
        "days": plan.days,
        "all_gather_bytes": memory.all_gather_bytes,
        "reduce_bytes": memory.reduce_bytes,
        "traffic_bytes": memory.traffic,
        "bandwidth_bytes_per_second": plan.bandwidth,
        "compute_seconds": plan.compute_seconds,
        "transfer_seconds": plan.transfer_seconds,
        "transfer_share": plan.transfer_seconds / (plan.transfer_seconds + plan.compute_seconds),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "table": [
            {
                "strategy": each.way.strategy,
                "activation_checkpointing": each.way.recompute,
                "features": "cached" if each.way.cached else "live",
                "peak_bytes": each.memory.peak,
                "traffic_bytes": each.memory.traffic,
                "largest_batch": each.largest_batch,
                "fits": each.fits,
            }
            for each in plan.table
        ],
        "problem": plan.refusal(),
    }


def summary(plan: Plan) -> list[str]:
    """Return the lines about the run itself."""
    request, memory = plan.request, plan.memory.memory
    ema = f", EMA {gb(memory.ema)}" if memory.ema else ""
    lines = [
        f"plan: {request.preset} {request.stage}, {request.devices} x {request.gpu.name}, "
        f"{plan.memory.way}, batch {request.batch_size} on each, {request.precision}",
        f"memory of a GPU: {gb(memory.peak)} of {gb(request.gpu.memory * USABLE)} GB: parameters "
        f"{gb(memory.parameters)}, gradients {gb(memory.gradients)}, optimizer "
        f"{gb(memory.optimizer)}{ema}, activations and buffers {gb(memory.activations)}; "
        f"largest batch {plan.memory.largest_batch}",
        f"time: {plan.flops_per_sample / 1e12:.2f} TFLOP a sample, "
        f"{plan.samples_per_second:,.0f} samples/s at {MFU:.0%} of "
        f"{request.gpu.peak / 1e12:.0f} TFLOP/s, {plan.days:.2f} days for {request.steps:,} steps",
    ]
    if request.devices > 1:
        frozen = ""
        if plan.placement is not None:
            frozen = "; frozen parameters are " + (
                "replicated"
                if plan.placement == "replicate"
                else "sharded, and gathered once for each pass, forward and backward"
            )
        lines.append(
            f"traffic: {gb(memory.traffic)} GB a step and GPU ({gb(memory.all_gather_bytes)} "
            f"gathered, {gb(memory.reduce_bytes)} reduced), {plan.transfer_seconds:.2f} s at "
            f"{plan.bandwidth / 1e9:.0f} GB/s beside {plan.compute_seconds:.2f} s of "
            f"arithmetic{frozen}"
        )
    lines.append(f"checkpoint: {gb(plan.checkpoint_bytes)} GB")
    return lines


def as_text(plan: Plan) -> str:
    """Return the plan as text: the run, and a table of the other ways."""
    rows = [("", "peak GB", "fits", "largest batch", "GB a step")]
    rows += [
        (
            str(each.way),
            gb(each.memory.peak),
            "yes" if each.fits else "no",
            str(each.largest_batch),
            gb(each.memory.traffic),
        )
        for each in plan.table
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    stories = ""
    if plan.request.stories:
        stories = (
            f"{plan.request.stories:.0%} of the samples are stories of {STORY_IMAGES} images and "
            f"{STORY_TOKENS} tokens beside them; a batch pads its prompts to the longest. "
        )
    notes = (
        f"Prompts of {PROMPT_TOKENS} tokens. {stories}Memory is that of tensors; "
        f"{1 - USABLE:.0%} of the card is left to CUDA, NCCL and fragmentation."
    )
    return "\n".join([*summary(plan), "", *lines, "", notes])


def gb(size: float) -> str:
    """Return bytes in gigabytes (1e9), with two digits below 10 and one from there on."""
    value = size / 1e9
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"
