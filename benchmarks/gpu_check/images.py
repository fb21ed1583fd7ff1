"""Images a second, low-memory modes, and the processor's results against the GPU's."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from gpu_check.device import CUDA, Device, moved
from gpu_check.models import inference_model, place
from triptych.inference.loading import load_model
from triptych.inference.offload import offload_to_cpu
from triptych.inference.quantization import quantize
from triptych.modules import UnifiedModule
from triptych.training.synthetic_batches import caption_batch
from triptych.utils.paths import presets

BATCHES = (1, 4, 16)
PRESET = "blip3o_8b"
PARITY_BOUND = 1e-3  # of the largest value, in float32: rounding in another order


def generate(model: UnifiedModule, batch: Any, steps: int | None) -> torch.Tensor:
    """Prompts to images uint8 [B,3,H,W], by both samplers' own number of steps, or `steps`."""
    seeds = list(range(len(batch)))
    with torch.no_grad():
        condition = model.understanding.vlm.condition(
            batch.input_ids,
            batch.attention_mask,
            model.generation.queries,
            num_shared_prefix_tokens=batch.num_shared_prefix_tokens,
        )
        features = model.generation.sample(condition, seeds, num_inference_steps=steps)
        return model.decoding.decode(features, seeds, num_inference_steps=steps)


def images(device: Device) -> dict[str, Any]:
    """Images a second and peak memory at 8B, by batch size."""
    model = inference_model(device, PRESET, "encoder")
    batches = {size: caption_batch(model, size, pixels=False) for size in BATCHES}
    found = {}
    with device.computing():
        place(model)
        for size, batch in batches.items():
            batch = batch.to(CUDA)
            generate(model, batch, 1)  # cuDNN chooses its kernels
            call = partial(generate, model, batch, 2 if device.dry else None)
            figures = device.measured(call, 1, warm_up=0)
            found[f"batch {size}"] = device.per_second(figures, size, "images_per_s")
    return found


def four_bit(device: Device) -> dict[str, Any]:
    """One image at 8B with a 4-bit language model."""
    if find_spec("bitsandbytes") is None:
        return {"skipped": "bitsandbytes is not installed"}
    if device.dry:
        return {"skipped": "bitsandbytes computes on real tensors alone"}
    model = place(inference_model(device, PRESET, "encoder"), torch.device("cpu"))
    quantize(model.understanding.vlm, "4bit")
    return _one_image(device, model.to(CUDA))


def offload(device: Device) -> dict[str, Any]:
    """One image at 8B with each network on the GPU only while it computes."""
    model = inference_model(device, PRESET, "encoder")
    batch = caption_batch(model, 1, pixels=False)
    with device.computing():
        place(model, torch.device("cpu"))
        offload_to_cpu(model, CUDA)
        return _one_image(device, model, batch)


def _one_image(device: Device, model: UnifiedModule, batch: Any = None) -> dict[str, Any]:
    batch = (batch or caption_batch(model, 1, pixels=False)).to(CUDA)
    call = partial(generate, model, batch, 2 if device.dry else None)
    return device.per_second(device.measured(call, 1, warm_up=0), 1, "images_per_s")


def parity(device: Device) -> dict[str, Any]:
    """Condition, features and pixels of the tiny preset on the processor and on the GPU."""
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions
    model = load_model([presets()["tiny"]])
    batch = caption_batch(model, 4, pixels=False)
    on_cpu = stages(model, batch)
    with device.computing():
        moved(model, CUDA)
        model._device = CUDA
        on_gpu = stages(model, batch.to(CUDA))
        if device.dry:
            return {"compared": list(on_gpu)}
    found = {}
    for name, expected in on_cpu.items():
        scale = expected.abs().max()
        found[name] = float((on_gpu[name].cpu() - expected).abs().max() / scale)
    above = [name for name, difference in found.items() if difference > PARITY_BOUND]
    return {"relative_difference": found, "bound": PARITY_BOUND, "above": above}


@torch.no_grad()
def stages(model: UnifiedModule, batch: Any) -> dict[str, torch.Tensor]:
    """Float32 results: condition [B,N,D], features [B,C,h,w], latents of the decoder [B,Z,a,a]."""
    queries, seeds = model.generation.queries, list(range(len(batch)))
    condition = model.understanding.vlm.condition(batch.input_ids, batch.attention_mask, queries)
    features = model.generation.sample(condition, seeds, num_inference_steps=4)
    noise = features.new_zeros(len(batch), *model.vae.feature_shape)
    decoder = model.decoding.decoder
    latents = decoder.denoise(noise, torch.full((len(batch),), 500, device=noise.device), features)
    return {"condition": condition.hidden_states, "features": features, "denoised": latents.float()}
