"""Parity of the image inputs of the language model: patches, grids, visual features."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.evaluation.parity.checkpoint import RecordedCheckpoint
from triptych.evaluation.parity.checks import Checks

Seen = tuple[Tensor | None, Tensor | None]
"""Patches [S,patch] and grids [images,3] as `VisionLanguageModel.condition` takes them."""


def check_seeing(
    shared: RecordedCheckpoint, images: Tensor, patches: Tensor, grids: Tensor, checks: Checks
) -> Seen:
    """Check patches and grids of images uint8 [n,H,W,3] against recorded ones; returns ours."""
    side = shared.vlm.vision.patch_size
    height, width = (grids[0, 1:] * side).tolist()
    images = torch.stack([_resized(image, height, width) for image in images])
    own_patches, own_grids = shared.vlm.image_inputs(images.permute(0, 3, 1, 2))
    checks.values("patches", own_patches, patches.flatten(0, -2))
    checks.same("grids", own_grids, grids)
    return own_patches, own_grids


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resize like the published processor if the sides are not multiples of its grid."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))
