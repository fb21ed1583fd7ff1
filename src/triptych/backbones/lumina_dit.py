"""The velocity model: diffusers' Lumina-Next DiT behind a caption projection."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.attention_processor import Attention, LuminaAttnProcessor2_0
from diffusers.models.embeddings import (
    PixArtAlphaTextProjection,
    get_2d_rotary_pos_embed_lumina,
)
from torch import Tensor, nn

from triptych.backbones.lumina_patches import PatchEmbed, SourceInput, with_source
from triptych.interfaces import Source, Velocity, VelocityModel
from triptych.interfaces.networks import num_negative_rows
from triptych.utils.errors import UserError

LEAST_TIME = 0.05
"""The time that a prediction of features is divided by is at least this; Li & He's clip."""


class LuminaNextDiT(VelocityModel):
    """Lumina-Next DiT with cross-attention on the projected condition. Defaults as published.

    Args:
        width, depth, heads: sizes of the transformer; width / heads is a multiple of 4.
        multiple_of: the feed-forward width, 8/3 of `width`, is rounded up to a multiple of this.
        ffn_width: the feed-forward width itself, in place of that rule. Published checkpoints
            have 4864 or 7168, by the diffusers that made them; see `key_mapping`.
        patch_size: side in feature tokens of one transformer token.
        gate_init: start value of the gates of the cross-attention (a tanh is taken). Published
            weights started at 0; small models trained for minutes then never learn to listen.
        position_std: deviation of a learned vector for each token's place, added to its patch; 0
            for none, as published. Rotary positions are relative, and where a caption says what
            goes where the tokens are all noise: a small model then draws anywhere.
        source: how the features of the image that an edit changes enter. "none": not at all, as
            published. "channels": a linear map of the source's patch, zero at first, is added to
            the token at its place. "tokens": the source's patches are further tokens, with the
            positions of theirs, that self-attention reads: it then costs four times as much, and
            all else of a block twice.
        prediction: what the network's outputs are. "velocity", as published, or "features", the
            clean features x, from which the velocity follows, v = (x_t - x) / t (Li & He 2025,
            arXiv 2511.13720). Features of low rank among many channels are learned sooner so: the
            outputs need not carry the noise of every channel.
    """

    def __init__(
        self,
        width: int = 1792,
        depth: int = 24,
        heads: int = 28,
        *,
        multiple_of: int = 256,
        patch_size: int = 1,
        gate_init: float = 0.0,
        ffn_width: int | None = None,
        position_std: float = 0.0,
        source: SourceInput = "none",
        prediction: Literal["velocity", "features"] = "velocity",
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise UserError(f"DiT width {width} / heads {heads} must be a multiple of 4.")
        self.width, self.depth, self.heads = width, depth, heads
        self.multiple_of, self.patch_size, self.gate_init = multiple_of, patch_size, gate_init
        self.ffn_width, self.position_std = ffn_width, position_std
        self.source, self.takes_source = source, source != "none"
        self.prediction = prediction

    def configure_shapes(self, feature_shape: tuple[int, int, int], condition_width: int) -> None:
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
        tokens = side // self.patch_size
        table = get_2d_rotary_pos_embed_lumina(self.width // self.heads, tokens, tokens)
        # [side,side,head_dim/2,2], real and imaginary part
        self.register_buffer("rotary", torch.view_as_real(table), persistent=False)
        # Declared by diffusers, used by nothing: without this its memory is never written.
        nn.init.zeros_(self.dit.pad_token)
        self.dit.pad_token.requires_grad_(False)
        for number, layer in enumerate(self.dit.layers):
            nn.init.constant_(layer.gate, self.gate_init)
            layer.attn1.set_processor(LuminaAttention())
            layer.attn2.set_processor(LuminaAttention(number, layer.norm1_context))
        if self.position_std or self.takes_source:
            self.dit.patch_embedder = self._patch_embedder(channels, tokens)

    def _patch_embedder(self, channels: int, side: int) -> PatchEmbed:
        own = self.dit.patch_embedder
        made = PatchEmbed(
            self.patch_size,
            channels,
            width=self.width,
            side=side,
            position_std=self.position_std,
            source=self.source,
        )
        if not self.position_std:
            made.proj = own.proj  # diffusers' draw, as without a source
        return made

    def blocks(self) -> list[nn.Module]:
        return list(self.dit.layers)

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the feed-forward part, by diffusers' rule if it is not given."""
        rule = 8 * self.width // 3
        return self.ffn_width or -(-rule // self.multiple_of) * self.multiple_of

    def _ffn(self) -> dict[str, Any]:
        """diffusers rounds `ffn_dim_multiplier` * 8/3 `width` up to a multiple of `multiple_of`."""
        if self.ffn_width is None:
            return {"multiple_of": self.multiple_of}
        rule = 8 * self.width // 3
        return {
            "multiple_of": self.ffn_width,
            "ffn_dim_multiplier": min(1.0, self.ffn_width / rule),
        }

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | CaptionKVCache,
        source: Source | None = None,
    ) -> Tensor:
        if isinstance(condition, CaptionKVCache):
            caption, mask = condition.pooled(self.caption_projection, self.dit.dtype)
            options = {"cache": condition}
        else:
            caption, options = self.caption_projection(condition.to(self.dit.dtype)), {}
            mask = torch.ones(caption.shape[:2], device=caption.device)
        output = self.dit(
            with_source(x_t.to(self.dit.dtype), source),
            (1000 * t).float(),
            caption,
            mask,
            torch.view_as_complex(self.rotary),
            cross_attention_kwargs=options,
            return_dict=False,
        )[0]
        if self.prediction == "velocity":
            return output
        time = t.float().clamp_min(LEAST_TIME)[:, None, None, None]
        return (x_t.float() - output.float()) / time

    def with_cached_condition(
        self,
        condition: Tensor,
        negative_condition: Tensor | None = None,
        *,
        source: Source | None = None,
    ) -> Velocity:
        """Project the caption once, and compute its keys and values in each block once.

        Equal to `forward` but for rounding. The first call of the returned function computes them,
        so that a block whose parameters are split over ranks is gathered then as always.
        """
        cache = CaptionKVCache(condition, negative_condition, num_negative_rows(condition, source))
        return lambda x_t, t: self(x_t, t, cache, source)


class CaptionKVCache:
    """Cached results that depend only on a condition [B,N,D], from the first call on.

    With a `negative` condition [1,N,D], which is computed as one row, it has `negative_rows` rows
    of that one before its own.
    """

    def __init__(self, condition: Tensor, negative: Tensor | None, negative_rows: int) -> None:
        self.rows = None
        if negative is not None:
            first, last = 1 - negative_rows, len(condition)
            self.rows = torch.arange(first, last + 1, device=condition.device).clamp_min(0)
            condition = torch.cat([negative, condition])
        self.condition, self.caption = condition, None
        self.attentions: dict[int, CachedCrossAttention] = {}

    def pooled(self, projection: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean of the projected caption [rows,1,D], and the mask [rows,N] of the caption.

        One token stands in for N: diffusers' network needs only the mean of the caption
        itself once keys and values are cached.
        """
        if self.caption is None:
            self.caption = projection(self.condition.to(dtype))
            self.mean = self.spread(self.caption.mean(1, keepdim=True))
            self.mask = self.mean.new_ones(len(self.mean), self.caption.shape[1])
        return self.mean, self.mask

    def spread(self, each: Tensor) -> Tensor:
        """Rows of the negative and of B conditions -> all rows."""
        return each if self.rows is None else each[self.rows]

    def attention(self, layer: int, attn: Attention, norm: nn.Module) -> CachedCrossAttention:
        """`attn` with the caption's keys and values computed."""
        if layer not in self.attentions:
            caption = norm(self.caption)
            key = self.spread(attn.norm_k(attn.to_k(caption)))
            value = self.spread(attn.to_v(caption))
            self.attentions[layer] = CachedCrossAttention(attn, key, value)
        return self.attentions[layer]


class CachedCrossAttention:
    """A diffusers Attention with cached keys and values [rows,N,D], whatever its input."""

    norm_k = None  # the cached keys are normalized

    def __init__(self, attn: Attention, key: Tensor, value: Tensor) -> None:
        self.to_q, self.norm_q, self.heads, self.scale = (
            attn.to_q,
            attn.norm_q,
            attn.heads,
            attn.scale,
        )
        self.key, self.value = key, value

    def to_k(self, hidden_states: Tensor) -> Tensor:
        return self.key

    def to_v(self, hidden_states: Tensor) -> Tensor:
        return self.value


class LuminaAttention(LuminaAttnProcessor2_0):
    """diffusers' attention of Lumina; to the caption of a `KeptCaption`, if one is given.

    Args:
        layer, norm: number of the block and its norm of the caption; none for self-attention,
            which is the same for any caption.
    """

    def __init__(self, layer: int = 0, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def __call__(  # noqa: PLR0917 diffusers calls it
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Tensor | None = None,
        key_rotary_emb: Tensor | None = None,
        cache: CaptionKVCache | None = None,
    ) -> Tensor:
        if cache is not None and self.norm is not None:
            attn = cache.attention(self.layer, attn, self.norm)
        return super().__call__(
            attn,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            query_rotary_emb,
            key_rotary_emb,
        )
