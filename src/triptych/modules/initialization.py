"""From described parts to parts with numbers: on meta, split over ranks, read from weight files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from triptych.checkpoints.weight_files import full_name
from triptych.interfaces import LazyModule
from triptych.training.freezing import is_unused_parameter
from triptych.utils.precision import float32_by_default
from triptych.utils.rng import mix


@contextmanager
def draws_of(name: str) -> Iterator[None]:
    """Make draws inside depend only on torch's seed and `name`, whatever was built before.

    Parameters built inside are float32: casts come later, and exclude buffers.
    """
    seed = mix(torch.initial_seed(), zlib.crc32(name.encode()))
    with torch.random.fork_rng(devices=[]), float32_by_default():
        torch.manual_seed(seed)
        yield


def build_part(name: str, part: LazyModule) -> None:
    """Build a part and the parts in it, each with draws of its own, unless they are built."""
    for inner_name, inner in part.named_children():
        if isinstance(inner, LazyModule):
            build_part(inner_name, inner)
    if not part.is_built:
        with draws_of(name):
            part.build()


def build_own(panel: nn.Module) -> None:
    """Build a panel's own parameters, with draws of their own."""
    with draws_of(type(panel).__name__):
        panel.build_own()


def start_at_random(root: nn.Module, stored: set[str]) -> None:
    """Initialize modules built on meta that are not, or not whole, in `stored` (full names).

    Only one part at a time is whole in memory, and only if it starts from nothing.
    """
    for path, module in list(root.named_modules()):
        if not isinstance(module, LazyModule) and not hasattr(module, "build_own"):
            continue
        names = (f"{path}.{name}" if path else name for name in _own(module))
        if all(full_name(name) in stored or is_unused_parameter(name) for name in names):
            continue
        if isinstance(module, LazyModule):
            with draws_of(path.rpartition(".")[2]):
                module.build()
        else:
            build_own(module)


def _own(module: nn.Module) -> list[str]:
    """Names of a part's or panel's parameters that belong to no part in it."""
    if not isinstance(module, LazyModule):
        return [name for name, _ in module.named_parameters(recurse=False)]
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for child_name, child in module.named_children():
        if not isinstance(child, LazyModule):
            names += [f"{child_name}.{name}" for name, _ in child.named_parameters()]
    return names
