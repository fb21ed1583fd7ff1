"""Parameters on the meta device, and their materialization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Create parameters on the meta device, without values and memory, inside this context.

    Buffers are real, unlike under `torch.device("meta")`: rotary tables and the like are computed
    when a network is built and are in no file.
    """
    plain = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        plain(module, name, parameter)

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = plain


def materialize(module: nn.Module, device: torch.device) -> None:
    """Replace meta parameters by zeros on `device`; sharded ones by this rank's shard."""
    created: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.is_meta:
                continue
            if parameter not in created:
                zeros = torch.zeros_like(parameter, device=device)
                created[parameter] = nn.Parameter(zeros, parameter.requires_grad)
            setattr(each, name, created[parameter])
