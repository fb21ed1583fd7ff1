"""Source images of edits for the generator, where it sees them, and what it cannot do where not."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from triptych.inference.generation_config import GenerationConfig
from triptych.interfaces import Source
from triptych.modules.base import encoded
from triptych.utils.errors import UserError
from triptych.utils.finite import require_finite
from triptych.utils.images import scaled_pixels

log = logging.getLogger(__name__)
UNSEEN = (
    "this model's generator does not see the image to edit, only its language model does: what the "
    "instruction leaves alone will change in its details, too; a generator with source: channels, "
    "trained on edits, keeps it."
)
_told: WeakSet[Any] = WeakSet()
"""Models of which `UNSEEN` was said."""


def check_edit(model: Any, config: GenerationConfig) -> None:
    """Check, before any computation, that a model can edit by these settings.

    Says once of a model that its generator does not see what it edits.

    Raises:
        UserError: there is a scale of guidance by the image, and the generator does not see that;
            or it does, and the encoder has no weights.
    """
    if model.generation.takes_source:
        if not model.target_encoder.is_built:
            raise UserError(
                "this model's generator sees the image to edit through the image encoder, which "
                "has no weights; name them with --model.weights.encoder=FILE."
            )
        return
    if config.image_guidance_scale is not None:
        raise UserError(
            f"image_guidance_scale is {config.image_guidance_scale:g}, and this model's generator "
            "does not see the image to edit; leave it out, or use a model whose generator has a "
            "source."
        )
    _say_unseen(model)


@rank_zero_only
def _say_unseen(model: Any) -> None:
    if model not in _told:
        _told.add(model)
        log.warning(UNSEEN)


@torch.no_grad()
def source_of_images(model: Any, images: Tensor) -> Source | None:
    """Source of images uint8 [B,3,H,W] to edit; None where the generator sees none.

    Raises:
        NotFiniteError: the features are NaN or infinite.
    """
    if not model.generation.takes_source:
        return None
    pixels = scaled_pixels(images, model.image_size).to(model.device)
    features = encoded(model.target_encoder, pixels)
    require_finite(features, "the features of the image to edit")
    return Source(features, torch.ones(len(images), dtype=torch.bool, device=features.device))
