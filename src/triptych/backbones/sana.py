"""Alternative pixel decoder: diffusers' SANA transformer, conditioned on features."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from triptych.interfaces import (
    Condition,
    DecodeOptions,
    PixelDecoder,
    SamplerConfig,
)
from triptych.loss import TimestepSampling, mse, path, sample_time
from triptych.sampler import sample_flow
from triptych.utils.errors import UserError
from triptych.utils.precision import own_precision
from triptych.utils.rng import Draw, normal

DEFAULT_SAMPLING = SamplerConfig()


class SanaDecoder(PixelDecoder):
    """Flow matching in the latents of a DC-AE; the feature tokens stand in for SANA's caption.

    The null condition is not zeros but the encoder's features of a blank image, which the panel
    hands over. The defaults are SANA 1600M at 512 pixels (Xie et al. 2024, arXiv 2410.10629), and
    the connector that BLIP3-o puts before it.

    Args:
        width, depth, heads, cross_heads: sizes of the transformer; width is a multiple of both
            numbers of heads.
        mlp_ratio: hidden width of its convolutional feed-forward network over `width`.
        caption_width: width in which the transformer reads its condition.
        timestep_sampling: distribution of training times, see `loss.sample_time`.
        cond_drop_prob: probability of training on the null condition.
        sampling: default settings of `decode`.
    """

    trained_parts = ("transformer", "connector")

    def __init__(
        self,
        *,
        width: int = 2240,
        depth: int = 20,
        heads: int = 70,
        cross_heads: int = 20,
        mlp_ratio: float = 2.5,
        caption_width: int = 2304,
        timestep_sampling: TimestepSampling = "uniform",
        cond_drop_prob: float = 0.1,
        sampling: SamplerConfig = DEFAULT_SAMPLING,
    ) -> None:
        super().__init__()
        if width % heads or width % cross_heads:
            raise UserError(
                f"decoder width {width} is no multiple of heads {heads} and cross_heads "
                f"{cross_heads}; change one of the three."
            )
        sampling.check()
        self.sampling = sampling
        self.width, self.depth, self.heads, self.cross_heads = width, depth, heads, cross_heads
        self.mlp_ratio, self.caption_width = mlp_ratio, caption_width
        self.timestep_sampling, self.cond_drop_prob = timestep_sampling, cond_drop_prob
        # In no file: it follows from the encoder. A buffer, so that it moves with the module.
        self.register_buffer("null_features", None, persistent=False)

    def configure_shapes(self, feature_shape: tuple[int, int, int]) -> None:
        self.feature_shape = feature_shape

    @property
    def needs_null_features(self) -> bool:
        return self.null_features is None

    def set_null_features(self, features: Tensor) -> None:
        self.null_features = features

    def build(self) -> None:
        latent_channels, side, _ = self.vae.feature_shape
        # Without interpolation_scale there is no table of positions: the convolutions encode them.
        self.transformer = SanaTransformer2DModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_attention_heads=self.heads,
            attention_head_dim=self.width // self.heads,
            num_layers=self.depth,
            num_cross_attention_heads=self.cross_heads,
            cross_attention_head_dim=self.width // self.cross_heads,
            cross_attention_dim=self.width,
            caption_channels=self.caption_width,
            mlp_ratio=self.mlp_ratio,
            sample_size=side,
        )
        self.connector = nn.Sequential(
            nn.Linear(self.feature_shape[0], self.caption_width),
            nn.GELU(approximate="tanh"),
            nn.Linear(self.caption_width, self.caption_width),
            nn.RMSNorm(self.caption_width, eps=1e-5),
        )
        # The published scale of the text features that SANA was trained on.
        nn.init.constant_(self.connector[-1].weight, math.sqrt(5.5))

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    def random_draws(self) -> list[Draw]:
        """Dropped conditions, time and noise."""
        return [
            Draw("decoder-drop"),
            Draw("decoder-time"),
            Draw("decoder-time-normal", (), "normal"),
            Draw("decoder-noise", tuple(self.vae.feature_shape), "normal"),
        ]

    def loss(self, features: Tensor, pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad(), own_precision(self.vae):
            latents = self.vae(pixels).float()
        dropped = draws["decoder-drop"] < self.cond_drop_prob
        features = torch.where(dropped[:, None, None, None], self.null_features, features)
        t = sample_time(draws["decoder-time"], draws["decoder-time-normal"], self.timestep_sampling)
        x_t, target = path(latents, draws["decoder-noise"], t)
        return mse(self.velocity(x_t, t, self.condition(features)), target)

    def condition(self, features: Tensor) -> Tensor:
        """Features [B,C,h,w] -> the transformer's condition [B,h*w,caption_width], row by row."""
        tokens = features.flatten(2).transpose(1, 2)
        return self.connector(tokens.to(self.transformer.dtype))

    def velocity(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x_t [B,Z,a,a], t [B] in [0,1] (1 is noise), condition [B,h*w,caption_width]."""
        x_t = x_t.to(self.transformer.dtype)
        return self.transformer(x_t, condition, (1000 * t).float(), return_dict=False)[0]

    def decode_with(self, features: Tensor, seeds: list[int], options: DecodeOptions) -> Tensor:
        def on_step(step: int, _: Tensor, latents: Tensor) -> None:
            options.on_image(step, lambda: self.vae.decode(latents))

        sampling, negative = options.sampling, options.negative_features
        if negative is None:
            negative = self.null_features[None]
        latents = sample_flow(
            self.velocity,
            Condition(self.condition(features)),
            normal(self.vae.feature_shape, 0, "decoder", seeds, features.device),
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            sampler=sampling.name,
            negative_condition=self.condition(negative),
            on_step=on_step if options.on_image else None,
        )
        return self.vae.decode(latents)
