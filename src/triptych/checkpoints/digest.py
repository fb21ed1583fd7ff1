"""Digest of weights, whichever file they came from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

VALUES = 4096  # of a tensor, at most: a step of training changes some of them


def weights_digest(module: nn.Module) -> str:
    """A digest of names, shapes, dtypes and evenly spaced values of all parameters and buffers.

    16 hexadecimal digits. It takes a second where reading every value of an 8B model takes a
    minute; weights that were changed on purpose in a few places may have the same.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // VALUES)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
