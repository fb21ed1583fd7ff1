"""Attention kernels: torch's, or xformers' where it is installed and works."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

from triptych.utils.errors import UserError

REMEDY = "leave model.execution.attention at sdpa, which needs nothing"


def use_xformers(module: nn.Module, device: torch.device) -> int:
    """Use xformers for the plain attention of diffusers' networks; return the number of layers.

    That is the UNet's and the VAE's. Other layers do more inside of their attention (rotary
    positions, normalized queries), which diffusers' processor for xformers would skip.

    Raises:
        UserError: xformers is not installed, or its kernels do not run on `device`.
    """
    probe_xformers(device)
    layers = [each for each in module.modules() if isinstance(each, Attention)]
    plain = [each for each in layers if type(each.processor) is AttnProcessor2_0]
    for each in plain:
        each.set_processor(XFormersAttnProcessor())
    return len(plain)


def probe_xformers(device: torch.device) -> None:
    """Import xformers and compute one small attention on `device`.

    Wheels are built for one version of torch and CUDA each; beside another they import without
    their kernels, or not at all.

    Raises:
        UserError: it cannot.
    """
    if find_spec("xformers") is None:
        raise UserError(
            "attention xformers: it is not installed; pip install a wheel of xformers that was "
            f"built for torch {torch.__version__}, or {REMEDY}."
        )
    try:
        from xformers.ops import memory_efficient_attention

        one = torch.zeros(1, 8, 1, 64, device=device, dtype=torch.bfloat16)
        memory_efficient_attention(one, one, one)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        cause = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(
            f"attention xformers: its kernels do not run on {device.type} beside torch "
            f"{torch.__version__} ({cause}); install a wheel that was built for it, or {REMEDY}."
        ) from error
