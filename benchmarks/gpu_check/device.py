"""The device of a part: a GPU, or, in a dry run, fake CUDA tensors on which nothing is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

CUDA = torch.device("cuda", 0)


class Device:
    """Device of a part, with its timing.

    Args:
        dry: whether tensors are fake. The process then has the stub of `tests/helpers/fake_cuda`.
    """

    def __init__(self, dry: bool) -> None:
        self.dry = dry

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A block whose tensors are the device's; networks are built before it."""
        if not self.dry:
            yield
            return
        from fake_cuda.model import fake_mode
        from fake_cuda.monitor import DeviceMonitor

        with ExitStack() as stack:
            for module, name in (
                ("triptych.sampler", "flow_solver"),
                ("triptych.backbones.sdxl", "diffusion_solver"),
            ):
                stack.enter_context(patch(f"{module}.{name}", _real(module, name)))
            stack.enter_context(patch.object(nn.Module, "to", moved))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # dynamo takes no fakes
            stack.enter_context(fake_mode())
            stack.enter_context(DeviceMonitor(_answer))
            yield

    def measured(self, work: Callable[[], Any], repeats: int, warm_up: int = 3) -> dict[str, Any]:
        """Seconds of `work`, a mean of `repeats`, and peak memory; of a dry run neither."""
        if self.dry:
            work()
            return {"s": None, "peak_gb": None}
        try:
            for _ in range(warm_up):
                work()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return {"error": "out of memory"}
        seconds = (time.perf_counter() - began) / repeats
        peak = torch.cuda.max_memory_allocated() / 1e9
        return {"s": round(seconds, 5), "peak_gb": round(peak, 2)}

    def per_second(self, figures: dict[str, Any], count: int, name: str) -> dict[str, Any]:
        """The figures with `count` a second, if there is a time."""
        return {**figures, name: round(count / figures["s"], 3)} if figures.get("s") else figures


def moved(module: nn.Module, device: str | torch.device) -> nn.Module:
    """`Module.to(device)` also for fake parameters, which torch refuses to exchange."""
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            each._parameters[name] = nn.Parameter(parameter.to(device), parameter.requires_grad)
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = buffer.to(device)
    return module


def _answer(tensor: torch.Tensor) -> object:
    """Value that the host reads from a fake tensor."""
    dtype = tensor.dtype
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _real(module: str, name: str) -> Callable[..., Any]:
    """A scheduler's maker that computes its tables, in numpy, outside of fake mode."""
    import importlib

    from torch._subclasses.fake_tensor import unset_fake_temporarily

    make = getattr(importlib.import_module(module), name)

    def made(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return make(*args, **options)

    return made
