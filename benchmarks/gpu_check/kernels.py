"""Attention kernels on the decoder, and collectives of one rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_check.device import CUDA, Device
from gpu_check.models import inference_model, place
from triptych.backbones.attention import use_xformers
from triptych.utils.errors import UserError

# [B,heads,tokens,width] of the SDXL UNet at 1024 pixels, guided, and of the VAE's middle
SHAPES = {"unet 64x64": (2, 10, 4096, 64), "unet 32x32": (2, 20, 1024, 64)}
SHAPES["vae middle"] = (1, 1, 16384, 512)
BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
REPEATS = 20


def attention(device: Device) -> dict[str, Any]:
    """Milliseconds of each kernel at the decoder's shapes, and of whole UNet calls."""
    model = inference_model(device, "blip3o_8b", "encoder", "understanding", "generation")
    decoder = model.decoding.decoder
    found: dict[str, Any] = {}
    with device.computing():
        for shape_name, shape in SHAPES.items():
            q = torch.zeros(shape, dtype=torch.bfloat16, device=CUDA)
            for backend in BACKENDS:
                call = partial(_with_backend, backend, q)
                found[f"{shape_name} {backend.lower()}"] = _tried(device, call)
        place(model)
        side = model.vae.feature_shape[1]
        latents = torch.zeros(2, model.vae.feature_shape[0], side, side, device=CUDA)
        features = torch.zeros(2, *decoder.feature_shape, device=CUDA)
        times = torch.full((2,), 500, device=CUDA)
        call = partial(_without_gradient, decoder.denoise, latents, times, features)
        found["unet call, torch"] = _tried(device, call)
        try:
            use_xformers(model, CUDA)
            found["unet call, xformers"] = _tried(device, call)
        except UserError as error:
            found["unet call, xformers"] = {"skipped": str(error)}
    return found


def _with_backend(backend: str, q: torch.Tensor) -> None:
    with sdpa_kernel(getattr(SDPBackend, backend)):
        scaled_dot_product_attention(q, q, q)


@torch.no_grad()
def _without_gradient(call: Any, *inputs: Any) -> None:
    call(*inputs)


def _tried(device: Device, call: Any) -> dict[str, Any]:
    """Figures of a kernel, or why it does not take these shapes."""
    try:
        return device.measured(call, REPEATS)
    except RuntimeError as error:
        return {"error": str(error).partition("\n")[0][:200]}


def one_rank(device: Device) -> DeviceMesh:
    """A mesh of one rank, over NCCL, or over nothing in a dry run."""
    if device.dry:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    else:
        torch.cuda.set_device(CUDA)
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    return init_device_mesh("cuda", (1,), mesh_dim_names=("data_parallel",))


def nccl(device: Device) -> dict[str, Any]:
    """Seconds of collectives over one rank of 256 MiB in bfloat16, and of a barrier."""
    one_rank(device)
    with device.computing():
        full = torch.ones(2**27, dtype=torch.bfloat16, device=CUDA)
        out = torch.empty_like(full)
        found = {
            "all_reduce": device.measured(lambda: dist.all_reduce(full), REPEATS),
            "all_gather": device.measured(lambda: dist.all_gather_into_tensor(out, full), REPEATS),
            "reduce_scatter": device.measured(
                lambda: dist.reduce_scatter_tensor(out, full), REPEATS
            ),
        }
        if not device.dry:
            found["barrier"] = device.measured(dist.barrier, REPEATS)
            found["value"] = float(full[0])
            found["version"] = ".".join(map(str, torch.cuda.nccl.version()))
    dist.destroy_process_group()
    return found
