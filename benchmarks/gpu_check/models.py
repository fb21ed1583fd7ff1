"""Presets with random weights on the device; a dry run has two layers of each network."""

from __future__ import annotations

from typing import Any

import torch
from rehearse import cut
from torch import nn

from gpu_check.device import CUDA, Device
from triptych.inference.loading import describe_model, describe_stage
from triptych.modules import UnifiedModule
from triptych.training.execution import cast_frozen
from triptych.training.freezing import freeze_all_but
from triptych.training.meta_init import materialize, parameters_on_meta
from triptych.utils.paths import presets

DRY_LAYERS = 2
NO_WEIGHTS = [f"--model.weights.{label}=null" for label in cut.LABELS]


def training_model(device: Device, preset: str, stage: str) -> UnifiedModule:
    """The model of a stage on the meta device, frozen parts in bfloat16."""
    flags = [*NO_WEIGHTS, *_depth(device, preset), "--model.build_decoder=false"]
    model = describe_stage(cut.stage_files(preset, stage), flags)
    with parameters_on_meta():
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    cast_frozen(model, torch.bfloat16)
    return model


def inference_model(device: Device, preset: str, *without: str) -> UnifiedModule:
    """The model of a preset on the meta device, in bfloat16, without some of its parts."""
    model = describe_model([presets()[preset]], [*NO_WEIGHTS, *_depth(device, preset)])
    model.left_out = set(without)
    with parameters_on_meta():
        model.build()
    model.trained = set()
    cast_frozen(model.requires_grad_(False), torch.bfloat16)
    return model.eval()


@torch.no_grad()
def place(model: UnifiedModule, where: torch.device = CUDA) -> UnifiedModule:
    """Give a model on the meta device memory and random numbers; in `Device.computing`."""
    materialize(model, where)
    for each in model.modules():
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = buffer.to(where)
        if hasattr(each, "_device"):
            each._device = where
    for name, parameter in model.named_parameters():
        fill(name, getattr(parameter, "to_local", lambda p=parameter: p)())
    return model


def fill(name: str, tensor: torch.Tensor) -> None:
    """Small noise, which multiplies as slowly as real weights, or ones for the scale of a norm."""
    if tensor.ndim == 1 and name.endswith("weight"):
        tensor.fill_(1.0)
    elif tensor.is_cuda:  # on the host it would take minutes, and zeros are as large
        tensor.normal_(0, 0.02)


def optimizer_norm(model: nn.Module) -> Any:
    """The norm of all gradients, clipped to 1."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, 1.0)


def _depth(device: Device, preset: str) -> list[str]:
    return cut.depth_flags(preset, DRY_LAYERS) if device.dry else []
