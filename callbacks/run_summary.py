"""Summary of a run before it starts: trainable parameters, memory, FLOPs and duration."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from triptych.callbacks._skip_step import local
from triptych.callbacks.ema import EMA
from triptych.training.component_names import component_of
from triptych.training.device_peaks import dense_peak, device_name
from triptych.training.flop_counter import OTHER, StepFlops, step_flops
from triptych.utils.errors import UserError

COLUMNS = ("part", "trained", "frozen", "dtype", "memory", "forward", "backward")
DAY = 86400  # seconds


class RunSummary(Callback):
    """Prints a table of the model's components before the first step.

    For each component: trainable and frozen parameters, their dtypes and bytes on one device, and
    the FLOPs of a sample forward and backward, counted on the first batch. Below: the memory of
    weights, gradients, optimizer and EMA (without activations), the FLOPs of the whole run, and,
    on a GPU with known peak, the time at an assumed utilization.

    Args:
        mfu: assumed model FLOPs utilization, as a share of the dense bfloat16 peak.
    """

    def __init__(self, mfu: float = 0.4) -> None:
        if not 0 < mfu <= 1:
            raise UserError(f"RunSummary: mfu is a share between 0 and 1, not {mfu}.")
        self.mfu = mfu
        self._shown = False

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._shown:
            return
        self._shown = True
        flops = step_flops(trainer, module, batch)  # all ranks
        if trainer.is_global_zero:
            print(
                "\n".join(
                    ["", *table(components(module), flops), *self._lines(trainer, module, flops)]
                )
            )

    def _lines(
        self, trainer: Trainer, module: LightningModule, flops: StepFlops | None
    ) -> list[str]:
        """Lines below the table."""
        lines = [memory_line(trainer, module)]
        if flops is None:
            return lines
        steps = trainer.max_steps - trainer.global_step
        per_step = flops.samples * trainer.accumulate_grad_batches * trainer.world_size
        total = flops.per_sample * per_step * steps
        lines.append(
            f"to do: {steps:,} steps of {per_step:,} samples, "
            f"{short(flops.per_sample)}FLOP a sample, {short(total)}FLOP in all"
        )
        peak = dense_peak(device_name(module.device))
        if peak is not None:
            days = total / (self.mfu * peak) / DAY
            lines.append(
                f"time: {days:,.2f} GPU-days if {self.mfu:.0%} of the dense bfloat16 peak "
                f"({short(peak)}FLOP/s) are reached, {days / trainer.world_size:,.2f} days on "
                f"{trainer.world_size} of them"
            )
        return lines


@dataclass
class ComponentStats:
    """Parameter counts of a component, and its size on this device."""

    trained: int = 0
    frozen: int = 0
    size: int = 0
    """Bytes."""
    dtypes: set[str] = field(default_factory=set)


def components(module: LightningModule) -> dict[str, ComponentStats]:
    """Every component with parameters; of sharded ones, this rank's shard."""
    stats: dict[str, ComponentStats] = defaultdict(ComponentStats)
    for name, parameter in module.named_parameters():
        component, own = stats[component_of(module, name)], local(parameter)
        if parameter.requires_grad:
            component.trained += own.numel()
        else:
            component.frozen += own.numel()
        component.size += own.nbytes
        component.dtypes.add(str(own.dtype).removeprefix("torch."))
    return stats


def memory_line(trainer: Trainer, module: LightningModule) -> str:
    """Memory of a device in training, except for activations."""
    own = [local(p) for p in module.parameters()]
    trained = sum(p.nbytes for p in own if p.requires_grad)
    sizes = {"weights": sum(p.nbytes for p in own), "gradients": trained}
    if isinstance(trainer.optimizers[0], (torch.optim.Adam, torch.optim.AdamW)):
        sizes["Adam"] = 2 * trained
    if any(isinstance(callback, EMA) for callback in trainer.callbacks):
        sizes["EMA"] = sum(4 * p.numel() for p in own if p.requires_grad)
    each = ", ".join(f"{name} {short(size)}B" for name, size in sizes.items())
    return f"memory on each device, without activations: {short(sum(sizes.values()))}B ({each})"


def table(stats: dict[str, ComponentStats], flops: StepFlops | None) -> list[str]:
    """A line of headings, one per component, and one for all components."""
    rows = [row(name, component, flops, [name]) for name, component in stats.items()]
    if flops is not None and (flops.forward.get(OTHER) or flops.backward.get(OTHER)):
        rows.append(row(OTHER, ComponentStats(), flops, [OTHER]))
    every = ComponentStats(
        sum(each.trained for each in stats.values()),
        sum(each.frozen for each in stats.values()),
        sum(each.size for each in stats.values()),
        set().union(*(each.dtypes for each in stats.values())),
    )
    rows.append(row("all", every, flops, None))
    rows.insert(0, COLUMNS)
    widths = [max(len(line[n]) for line in rows) for n in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if n in (0, 3) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in rows
    ]


def row(
    name: str, component: ComponentStats, flops: StepFlops | None, names: list[str] | None
) -> tuple[str, ...]:
    """Cells of a line; FLOPs are those of the components `names`, None for all."""
    cells = [
        name,
        count(component.trained),
        count(component.frozen),
        "+".join(sorted(component.dtypes)) or "-",
    ]
    cells.append(f"{short(component.size)}B" if component.size else "-")
    for direction in ("forward", "backward"):
        counted = {} if flops is None else getattr(flops, direction)
        chosen = counted.values() if names is None else (counted.get(n, 0) for n in names)
        total = sum(chosen)
        cells.append(f"{short(total / flops.samples)}FLOP" if total else "-")
    return tuple(cells)


def count(number: int) -> str:
    """1510000000 -> "1.51 G", 0 -> "-"."""
    return short(number).strip() if number else "-"


def short(number: float) -> str:
    """1.51e12 -> "1.51 T", ready for a unit."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g} {prefix}"
    return f"{number:.3g} "
