"""The velocity model: diffusers' Lumina-Next DiT behind a caption projection."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import (
    LuminaPatchEmbed,
    PixArtAlphaTextProjection,
    get_2d_rotary_pos_embed_lumina,
)
from torch import Tensor, nn

from triptych.contracts import UserError, VelocityModel


class LuminaNextDiT(VelocityModel):
    """Lumina-Next DiT with cross-attention on the projected condition. Defaults as published.

    Args:
        width, depth, heads: sizes of the transformer; width / heads is a multiple of 4.
        multiple_of: the feed-forward width, 8/3 of `width`, is rounded up to a multiple of this.
        ffn_width: the feed-forward width itself, in place of that rule. Published checkpoints
            have 4864 or 7168, by the diffusers that made them; see `weights.layouts`.
        patch_size: side in feature tokens of one transformer token.
        gate_init: start value of the gates of the cross-attention (a tanh is taken). Published
            weights started at 0; small models trained for minutes then never learn to listen.
        position_std: deviation of a learned vector for each token's place, added to its patch; 0
            for none, as published. Rotary positions are relative, and where a caption says what
            goes where the tokens are all noise: a small model then draws anywhere.
    """

    def __init__(
        self,
        width: int = 1792,
        depth: int = 24,
        heads: int = 28,
        multiple_of: int = 256,
        patch_size: int = 1,
        gate_init: float = 0.0,
        ffn_width: int | None = None,
        position_std: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise UserError(f"DiT width {width} / heads {heads} must be a multiple of 4.")
        self.width, self.depth, self.heads = width, depth, heads
        self.multiple_of, self.patch_size, self.gate_init = multiple_of, patch_size, gate_init
        self.ffn_width, self.position_std = ffn_width, position_std

    def set_shapes(self, feature_shape: tuple[int, int, int], condition_width: int) -> None:
        channels, height, width = feature_shape
        if height != width or height % self.patch_size:
            raise UserError(
                f"a {height}x{width} feature grid does not fit DiT patch_size {self.patch_size}."
            )
        self.feature_shape, self.condition_width = feature_shape, condition_width

    def build(self) -> None:
        channels, side, _ = self.feature_shape
        self.caption_projection = PixArtAlphaTextProjection(self.condition_width, self.width)
        self.dit = LuminaNextDiT2DModel(
            sample_size=side,
            patch_size=self.patch_size,
            in_channels=channels,
            hidden_size=self.width,
            num_layers=self.depth,
            num_attention_heads=self.heads,
            num_kv_heads=self.heads,
            **self._ffn(),
            norm_eps=1e-5,
            learn_sigma=False,
            qk_norm=True,
            cross_attention_dim=self.width,
        )
        # Declared by diffusers, used by nothing: without this its memory is never written.
        nn.init.zeros_(self.dit.pad_token)
        self.dit.pad_token.requires_grad_(False)
        for layer in self.dit.layers:
            nn.init.constant_(layer.gate, self.gate_init)
        if self.position_std:
            self.dit.patch_embedder = PlacedPatchEmbed(
                self.patch_size, channels, self.width, side // self.patch_size, self.position_std
            )

    def blocks(self) -> list[nn.Module]:
        return list(self.dit.layers)

    def _ffn(self) -> dict[str, Any]:
        """diffusers rounds `ffn_dim_multiplier` * 8/3 `width` up to a multiple of `multiple_of`."""
        if self.ffn_width is None:
            return {"multiple_of": self.multiple_of}
        rule = 8 * self.width // 3
        return {
            "multiple_of": self.ffn_width,
            "ffn_dim_multiplier": min(1.0, self.ffn_width / rule),
        }

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        projected = self.caption_projection(condition.to(self.dit.dtype))
        mask = torch.ones(projected.shape[:2], device=projected.device)
        return self.dit(
            x_t.to(self.dit.dtype),
            (1000 * t).float(),
            projected,
            mask,
            self._rotary(x_t.device),
            cross_attention_kwargs={},
            return_dict=False,
        )[0]

    def _rotary(self, device: torch.device) -> Tensor:
        """Complex 2-D rotary table [side,side,head_dim/2]; not a buffer, so never on meta."""
        side = self.feature_shape[1] // self.patch_size
        cached = getattr(self, "_table", None)
        if cached is None or cached.device != device:
            head = self.width // self.heads
            cached = get_2d_rotary_pos_embed_lumina(head, side, side).to(device)
            self._table = cached
        return cached


class PlacedPatchEmbed(LuminaPatchEmbed):
    """diffusers' patches, each with the learned vector of its place added: [B,side*side,width]."""

    def __init__(
        self, patch_size: int, channels: int, width: int, side: int, position_std: float
    ) -> None:
        super().__init__(patch_size=patch_size, in_channels=channels, embed_dim=width)
        self.position = nn.Parameter(torch.randn(side * side, width) * position_std)

    def forward(self, x: Tensor, freqs_cis: Tensor):
        patches, *rest = super().forward(x, freqs_cis)
        return patches + self.position, *rest
