"""Source images of a batch of edits, encoded for the generator."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.interfaces import Batch, ImageEncoder, Source
from triptych.modules.base import encoded
from triptych.training.ranks import several_ranks


@torch.no_grad()
def source_of(batch: Batch, encoder: ImageEncoder) -> Source:
    """Source of a batch, by the frozen encoder of the targets.

    Rows without one have zeros, also all rows of a batch without any: the generator's weights have
    a gradient on every rank.
    """
    device = batch.input_ids.device
    if batch.source_pixels is None:
        if batch.may_have_source and several_ranks():
            # other ranks may encode, which gathers an encoder that is split over all of them
            encoded(encoder, _black(encoder, device))
        features = torch.zeros(len(batch), *encoder.feature_shape, device=device)
        return Source(features, torch.zeros(len(batch), dtype=torch.bool, device=device))
    present = batch.has_source
    # of each row, without reading on the host how many there are
    numbers = (present.cumsum(0) - 1).clamp_min(0)
    features = encoded(encoder, batch.source_pixels).index_select(0, numbers)
    return Source(features * present[:, None, None, None], present)


def _black(encoder: ImageEncoder, device: torch.device) -> Tensor:
    size = encoder.image_size
    return torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
