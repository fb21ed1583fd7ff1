"""A training step of stage 2: seconds, samples a second, MFU and peak memory."""

from __future__ import annotations

from typing import Any

import torch

from gpu_check.device import CUDA, Device
from gpu_check.kernels import one_rank
from gpu_check.models import optimizer_norm, place, training_model
from triptych.modules import UnifiedModule
from triptych.training import flops
from triptych.training.device_peaks import dense_peak
from triptych.training.execution import compile_blocks
from triptych.training.fsdp import shard
from triptych.training.optimizer import make_optimizer
from triptych.training.synthetic_batches import PREFIX_TOKENS, PROMPT_TOKENS, caption_batch

BATCH, STEPS = 16, 10


def stage2(device: Device, size: str, how: str) -> dict[str, Any]:
    """Steps of stage 2 at 4B or 8B, features live and cached.

    Args:
        how: "plain", what a rank of DDP computes between two reductions; "compiled"; or "fsdp2",
            with one rank.
    """
    model = training_model(device, f"blip3o_{size}", "stage2")
    features = torch.randn(BATCH, *model.target_encoder.feature_shape)
    batches = {
        "cached": caption_batch(model, BATCH, features=features, pixels=False),
        "live": caption_batch(model, BATCH),
    }
    mesh = one_rank(device) if how == "fsdp2" else None
    with device.computing():
        if mesh is not None:
            shard(model, mesh, "shard")
        place(model).train()
        if how == "compiled":
            compile_blocks(model)
        optimizer = make_optimizer(model, model.optimization)
        found = {}
        for name, batch in batches.items():
            batch = batch.to(CUDA)
            figures = device.measured(lambda batch=batch: one_step(model, optimizer, batch), STEPS)
            figures = device.per_second(figures, BATCH, "samples_per_s")
            found[name] = figures | utilization(model, figures, live=name == "live")
    return {"batch": BATCH, **found}


def one_step(model: UnifiedModule, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Forward, backward, clipping, optimizer, as under `bf16-mixed`."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.step(batch)[0]
    loss.backward()
    optimizer_norm(model)
    optimizer.step()
    optimizer.zero_grad()


def utilization(model: UnifiedModule, figures: dict[str, Any], live: bool) -> dict[str, float]:
    """TFLOP of a sample by formula, and the share of the card's peak."""
    vlm, encoder = model.understanding.vlm, model.encoder if live else None
    dit, queries = model.generation.dit, model.generation.num_queries
    step = flops.generation_step(vlm, dit, encoder, PROMPT_TOKENS, queries, shared=PREFIX_TOKENS)
    found = {"tflop_a_sample": round(step.total / 1e12, 3)}
    peak = dense_peak(torch.cuda.get_device_name())
    if peak and "samples_per_s" in figures:
        found["mfu"] = round(figures["samples_per_s"] * step.total / peak, 4)
    return found
