"""Pictures on their way into the language model: patches, grids, visual features."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.evaluation.parity.checkpoint import Checkpoint
from triptych.evaluation.parity.checks import Checks

Seen = tuple[Tensor | None, Tensor | None]
"""Patches [S,patch] and grids [images,3] as `Understander.condition` takes them."""


def check_seeing(
    shared: Checkpoint, pictures: Tensor, patches: Tensor, grids: Tensor, checks: Checks
) -> Seen:
    """Our patches and grids of pictures uint8 [n,H,W,3], after a look at the recorded ones."""
    side = shared.understander.vision.patch_size
    height, width = (grids[0, 1:] * side).tolist()
    pictures = torch.stack([_resized(picture, height, width) for picture in pictures])
    own_patches, own_grids = shared.understander.image_inputs(pictures.permute(0, 3, 1, 2))
    checks.values("patches", own_patches, patches.flatten(0, -2))
    checks.same("grids", own_grids, grids)
    return own_patches, own_grids


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """As the published processor does where the sides are no multiple of its grid."""
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))
