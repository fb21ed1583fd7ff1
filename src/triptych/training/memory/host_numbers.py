"""Fake tensors beside real numbers of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from triptych.training.memory.storages import tensors_in

INTEGERS = frozenset({torch.int32, torch.int64})
CREATED = frozenset({"arange", "zeros", "ones", "full", "empty"})
MOST = 1 << 22
"""Elements up to which tensors are computed with."""


class HostNumbers(FakeTensorMode):
    """FakeTensorMode in which integers on the CPU that follow from real ones are real.

    The host reads tokens, grids and lengths and decides by them, such as into which windows the
    vision tower cuts its patches. Operations that take real CPU tensors alone are computed, as are
    ranges and the like of integers; all others are fake.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        fake = any(issubclass(each, FakeTensor) for each in types)
        if not fake and _on_the_host(func, args, kwargs):
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _on_the_host(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if torch.device(kwargs.get("device") or "cpu").type != "cpu":
        return False
    tensors = list(tensors_in((*args, *kwargs.values())))
    if tensors:
        return all(
            type(each) is Tensor and each.device.type == "cpu" and each.numel() <= MOST
            for each in tensors
        )
    name = func.overloadpacket.__name__
    if name not in CREATED:
        return False
    if name == "arange":
        numbers = [each for each in args if not isinstance(each, torch.dtype)]
        whole = all(isinstance(each, int) for each in numbers)
        return whole and kwargs.get("dtype") in (None, *INTEGERS) and max(map(abs, numbers)) <= MOST
    return kwargs.get("dtype") in INTEGERS and torch.Size(args[0]).numel() <= MOST
