"""Comparison of tensors and images within rounding.

Use it across batch sizes, shapes, threads and processors; `same` only where bits must be equal.

A sum of floating-point numbers depends on the order of its terms, and that order on all of these,
in some libraries also on where a tensor lies in memory: one that was read from a file may not begin
at a multiple of 64 bytes. Bit for bit only the same tensors of the same shapes give the same, on
the same threads of the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.shapes_world.checker import read
from triptych.shapes_world.world import PIXELS

PART = 1e-3  # of the pixels, rounded up


def levels(images: Any) -> np.ndarray:
    """Images as int16 [B, H, W, 3]: one or several of PIL's, or uint8 tensors [.., 3, H, W]."""
    if isinstance(images, Tensor):
        images = images.movedim(-3, -1)
        images = images.numpy() if images.ndim == 4 else images.numpy()[None]
    elif not isinstance(images, Sequence):
        images = [images]
    return np.stack([np.asarray(image) for image in images]).astype(np.int16)


def images_agree(images: Any, others: Any) -> bool:
    """Whether at most one pixel of a thousand differs, by one level of 255, and all read alike.

    What the checker of the shapes world reads counts for images of its size.
    """
    a, b = levels(images), levels(others)
    assert a.shape == b.shape
    off = np.abs(a - b)
    if off.max() > 1 or off.any(-1).sum() > ceil(PART * off[..., 0].size):
        return False
    if a.shape[1:3] != (PIXELS, PIXELS):
        return True
    return [read(image) for image in np.uint8(a)] == [read(image) for image in np.uint8(b)]


def assert_same_images(images: Any, others: Any) -> None:
    """Check that images agree within rounding; see `images_agree`."""
    off = np.abs(levels(images) - levels(others))
    said = f"{off.any(-1).sum()} of {off[..., 0].size} pixels differ, by up to {off.max()}"
    assert images_agree(images, others), said


def assert_close(tensor: Tensor, other: Tensor, roundings: float = 64) -> None:
    """Check that tensors of one dtype differ by at most so many roundings of the largest value.

    A rounding is the dtype's epsilon, 1.2e-7 in float32.
    """
    assert tensor.shape == other.shape and tensor.dtype == other.dtype
    bound = roundings * torch.finfo(tensor.dtype).eps * other.abs().max()
    off = (tensor - other).abs().max()
    assert off <= bound, f"off by {off:.2e}, more than {roundings} roundings, {bound:.2e}"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
