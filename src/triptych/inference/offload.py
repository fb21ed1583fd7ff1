"""CPU offloading: each network is moved to the device only while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from triptych.interfaces import LazyModule
from triptych.utils.errors import UserError


def offload_to_cpu(model: nn.Module, device: torch.device) -> None:
    """Offload the networks of `model`, on the CPU; each moves to `device` when it is called.

    It stays there until another is called; its inputs are moved too. Callers need not change.
    """
    offloader = CPUOffloader(device)
    for part in model.modules():
        if not isinstance(part, LazyModule) or not part.is_built:
            continue
        networks = part.called_modules()
        if networks == [part]:
            for name in ("forward", *part.fsdp_forward_methods):
                setattr(part, name, offloader.wrap(getattr(part, name), networks))
        else:  # such as a decoder
            for network in networks:
                network.forward = offloader.wrap(network.forward, networks)
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(device))  # small, and meets what comes from there


class CPUOffloader:
    """CPU offloader: records which networks are on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_device: list[nn.Module] = []

    def wrap(self, method: Callable, networks: list[nn.Module]) -> Callable:
        """`method`, before whose calls `networks`, and no others, are moved to the device."""

        @wraps(method)
        def call(*args: Any, **named: Any) -> Any:
            if self.on_device is not networks:
                for network in self.on_device:
                    network.to("cpu")
                for network in networks:
                    network.to(self.device)
                self.on_device = networks
            args, named = tree_map(self._to_device, (args, named))
            return method(*args, **named)

        return call

    def _to_device(self, each: Any) -> Any:
        return each.to(self.device) if isinstance(each, Tensor) else each


def check_fits_in_memory(model: nn.Module, device: torch.device) -> None:
    """Check, before anything is moved, that the weights fit on a GPU.

    Raises:
        UserError: they do not.
    """
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if needed > free:
        raise UserError(
            f"the weights take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on "
            f"{device}; load the model with enable_model_cpu_offload, quantize its language model "
            "to 8bit or 4bit, or use another device."
        )


@contextmanager
def sufficient_memory(batch_size: int, things: str = "images") -> Iterator[None]:
    """Say what to lower where memory does not suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and "not enough memory" not in str(error):  # torch's words about a CPU's
            raise
        remedy = "lower batch_size" if things == "images" else "give fewer at once, or shorter ones"
        raise UserError(
            f"{batch_size} {things} at once need more memory than there is; {remedy}, or load the "
            "model with enable_model_cpu_offload, or quantize its language model to 8bit or 4bit."
        ) from error
