"""Patch embedding of a Lumina-Next DiT with learned positions and the source image of an edit."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.models.embeddings import LuminaPatchEmbed
from torch import Tensor, nn

from triptych.interfaces import Source

SourceInput = Literal["none", "channels", "tokens"]
"""Ways in which a source image enters the DiT, see `LuminaNextDiT`."""


class PatchEmbed(LuminaPatchEmbed):
    """diffusers' patch embedding with a learned vector for each place, and a source.

    Args:
        channels, width: channels of the features, and width of a token.
        side: number of tokens in a row of the grid.
        position_std: initial deviation of the vectors of the places; 0 for none.
        source: how a source enters. What is learned for it is zero at first.
    """

    def __init__(
        self,
        patch_size: int,
        channels: int,
        *,
        width: int,
        side: int,
        position_std: float = 0.0,
        source: SourceInput = "none",
    ) -> None:
        super().__init__(patch_size=patch_size, in_channels=channels, embed_dim=width)
        self.channels, self.source, self.position = channels, source, None
        if position_std:
            self.position = nn.Parameter(torch.randn(side * side, width) * position_std)
        # last, and zero: all other weights are those of a model without a source
        if source == "channels":
            # its bias is the vector that says that there is a source
            self.source_embedder = nn.Linear(channels * patch_size**2, width)
            nn.init.zeros_(self.source_embedder.weight)
            nn.init.zeros_(self.source_embedder.bias)
        elif source == "tokens":
            self.source_type = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, freqs_cis: Tensor):
        """x [B,C,h,w], or [B,2C+1,h,w] by `with_source` -> (tokens, mask, sizes, rotary)."""
        target, given = x[:, : self.channels], x[:, self.channels :]
        tokens, mask, sizes, rotary = self._embedded(target, freqs_cis)
        if not given.shape[1]:
            return tokens, mask, sizes, rotary
        source, present = given[:, :-1], given[:, -1, 0, :1] > 0  # [B,C,h,w], [B,1]
        if self.source == "channels":
            seen = self.source_embedder(self._patches(source))
            return tokens + seen * present[..., None], mask, sizes, rotary
        more, *_ = self._embedded(source, freqs_cis)
        tokens = torch.cat([tokens, more + self.source_type], 1)
        mask = torch.cat([mask, mask * present], 1)  # of the keys: rows without are as without
        return tokens, mask, sizes, torch.cat([rotary, rotary], 1)

    def _embedded(self, features: Tensor, freqs_cis: Tensor):
        tokens, *rest = super().forward(features, freqs_cis)
        return tokens if self.position is None else tokens + self.position, *rest

    def _patches(self, features: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,tokens,C*p*p], the values of a patch in the order of `proj`."""
        size = self.patch_size
        patches = features.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B,C,h',p,w',p]
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def with_source(x_t: Tensor, source: Source | None) -> Tensor:
    """x_t [B,C,h,w] -> [B,2C+1,h,w]: the source, and whether there is one, as more channels."""
    if source is None:
        return x_t
    present = source.present.to(x_t.dtype)[:, None, None, None].expand_as(x_t[:, :1])
    return torch.cat([x_t, source.features.to(x_t.dtype), present], 1)
