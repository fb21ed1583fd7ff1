"""Plan of a `fit` on GPUs, printed before weights are loaded, and refusal of what will not fit.

Data and callbacks must be set up: by them it is known what the run computes with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from triptych.callbacks.ema import EMA
from triptych.cli.plan.report import make_plan, summary
from triptych.cli.plan.request import PlanRequest
from triptych.interfaces import BatchContents
from triptych.interfaces.batch import IMAGE_TO_IMAGE, INTERLEAVED, INTERLEAVED_IMAGES
from triptych.modules import UnifiedModule
from triptych.modules.unused_parts import needed_by_callbacks
from triptych.training.device_peaks import dense_peak, device_name
from triptych.training.gpu_specs import GPU
from triptych.training.strategies import ShardedStrategy
from triptych.utils.errors import UserError

UNKNOWN_LINK = 32e9
"""Bytes/s of PCIe, for a card that `gpu_specs` does not describe."""


def check_fit(model: Any, trainer: Trainer, data: Any, gpu: GPU | None) -> None:
    """Print the plan of a run, and refuse it if it will not fit. The first rank speaks for all.

    Args:
        gpu: the device of this rank; None on the CPU, whose memory is not counted.

    Raises:
        UserError: the run will not fit, with the nearest setting that does.
    """
    if gpu is None or not trainer.is_global_zero or not isinstance(model, UnifiedModule):
        return
    try:
        plan = make_plan(fit_request(model, trainer, data, gpu), table=False)
    except UserError as error:
        rank_zero_warn(str(error))
        return
    except Exception as error:  # a part of the user's that reads values; it may well train
        rank_zero_warn(f"the memory of this run could not be counted: {error}")
        return
    print("\n".join(summary(plan)), flush=True)
    if (problem := plan.refusal()) is not None:
        raise UserError(problem)


def fit_request(model: UnifiedModule, trainer: Trainer, data: Any, gpu: GPU) -> PlanRequest:
    """Return what a run asks for; its model is a copy, not built."""
    strategy = trainer.strategy
    hardware = "single"
    for kind, name in (
        (ShardedStrategy, "fsdp2"),
        (FSDPStrategy, "fsdp1"),
        (DDPStrategy, "ddp"),
    ):
        if isinstance(strategy, kind):
            hardware = name
            break
    return PlanRequest(
        copy.deepcopy(model, {id(trainer): None}),  # not the trainer that it belongs to
        model.preset,
        model.stage,
        hardware,
        trainer.world_size,
        gpu,
        getattr(data, "batch_size", 1),
        max(1, trainer.max_steps),
        trainer.precision,
        any(isinstance(callback, EMA) for callback in trainer.callbacks),
        getattr(data, "batch_contents", BatchContents)(),
        any(each.task == IMAGE_TO_IMAGE for each in getattr(data, "datasets", {}).values()),
        frozenset(needed_by_callbacks(trainer)),
        stories_share(data),
    )


def stories_share(data: Any) -> float:
    """Return the share of conversations with images in the samples of an objective, at most."""
    shares = [0.0]
    for objective in getattr(data, "task_datasets", {}) if hasattr(data, "weights") else ():
        weights = data.weights(objective)
        total = sum(weights.values())
        shares += [
            weight / total
            for name, weight in weights.items()
            if data.datasets[name].task in (INTERLEAVED, INTERLEAVED_IMAGES)
        ]
    return max(shares)


def gpu_of_rank(trainer: Trainer) -> GPU | None:
    """Return the GPU of this rank; None on the CPU."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    name = device_name(device)
    memory = torch.cuda.get_device_properties(device).total_memory
    return GPU(name, memory, dense_peak(name) or 100e12, UNKNOWN_LINK)
