"""Source images of edits as the generator sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass


@dataclass
class Source:
    """Features of the images to edit, on the grid of the images to generate."""

    features: Tensor
    """[B,C,h,w] by the encoder of the targets; finite, of no effect in rows without a source."""
    present: Tensor
    """[B] bool, which rows have a source."""

    def __len__(self) -> int:
        return len(self.present)

    def drop(self, dropped: Tensor) -> Source:
        """No source where `dropped` [B] is True: guidance by the image."""
        return Source(self.features, self.present & ~dropped)

    def rows(self, numbers: list[int]) -> Source:
        """The rows of these numbers."""
        return Source(self.features[numbers], self.present[numbers])

    def absent(self) -> Source:
        """No source in any row."""
        return Source(self.features, torch.zeros_like(self.present))

    def repeat_interleave(self, repeats: int) -> Source:
        """Each row `repeats` times: [B*repeats,...]."""
        return Source(
            self.features.repeat_interleave(repeats, 0), self.present.repeat_interleave(repeats)
        )

    @staticmethod
    def cat(sources: list[Source]) -> Source:
        """The rows of all of them."""
        return Source(
            torch.cat([each.features for each in sources]),
            torch.cat([each.present for each in sources]),
        )


register_dataclass(Source)  # FSDP looks for the tensors in what a part is given
