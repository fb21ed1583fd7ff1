"""The pixel decoder: diffusers' UNet in latent space, conditioned on image features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from triptych.interfaces import DecodeOptions, PixelDecoder, SamplerConfig
from triptych.loss import mse
from triptych.sampler import OnStep, diffusion_solver
from triptych.utils.errors import UserError
from triptych.utils.precision import own_precision
from triptych.utils.rng import Draw, normal

NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAIN_TIMES = 1000
DEFAULT_SAMPLING = SamplerConfig(num_inference_steps=50)


class SDXLDecoder(PixelDecoder):
    """A UNet that denoises VAE latents under cross-attention on the feature tokens.

    Like SDXL, the pooled condition (here the mean of the tokens) and the six size numbers
    (original size, crop, target size) join the time embedding. The null condition is zeros in
    training; `decode` takes negative features.

    Args:
        widths: channels of each level; every level after the first halves the side.
        depths: transformer layers of each level, 0 for a level of convolutions only.
        head_width, layers_per_block, norm_groups, time_width: sizes as in diffusers; head_width is
            one number, or one a level.
        prediction: target of the UNet, "epsilon" as published or "v_prediction".
        cond_drop_prob: probability of training without condition.
        baseline_width: hidden width of a per-token network that predicts the latents from the
            features only; the UNet then denoises the residual, normalized to unit variance.
            0 is SDXL. The baseline reaches in a minute what a small UNet needs hours for.
        feature_noise: deviation of noise added to the features in training, so that slightly
            wrong generated features still decode.
        sampling: default settings of `decode`.
        original_size: side in pixels that conditions the UNet as the size of the images before they
            were scaled; None is the side of the images. Published: 1024, whatever is decoded.
    """

    def __init__(
        self,
        widths: list[int] | None = None,
        depths: list[int] | None = None,
        *,
        head_width: int | list[int] = 64,
        layers_per_block: int = 2,
        norm_groups: int = 32,
        time_width: int = 256,
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
        cond_drop_prob: float = 0.1,
        baseline_width: int = 0,
        feature_noise: float = 0.0,
        sampling: SamplerConfig = DEFAULT_SAMPLING,
        original_size: int | None = None,
    ) -> None:
        super().__init__()
        self.widths, self.depths = widths or [320, 640, 1280], depths or [0, 2, 10]
        if len(self.widths) != len(self.depths):
            raise UserError(f"decoder widths {self.widths} and depths {self.depths} must pair up.")
        sampling.check()
        one = isinstance(head_width, int)
        self.head_widths = [head_width] * len(self.widths) if one else head_width
        self.layers_per_block, self.original_size = layers_per_block, original_size
        self.norm_groups, self.time_width, self.prediction = norm_groups, time_width, prediction
        self.cond_drop_prob, self.feature_noise = cond_drop_prob, feature_noise
        self.baseline_width, self.sampling = baseline_width, sampling
        self.trained_parts = ("unet", "baseline") if baseline_width else ("unet",)

    def configure_shapes(self, feature_shape: tuple[int, int, int]) -> None:
        self.feature_shape = feature_shape

    def build(self) -> None:
        latent_channels, side, _ = self.vae.feature_shape
        feature_channels = self.feature_shape[0]
        self.unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.depths
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(self.depths)
            ),
            block_out_channels=tuple(self.widths),
            layers_per_block=self.layers_per_block,
            norm_num_groups=self.norm_groups,
            transformer_layers_per_block=tuple(max(depth, 1) for depth in self.depths),
            # diffusers calls the number of heads a dimension here
            attention_head_dim=tuple(
                width // head for width, head in zip(self.widths, self.head_widths, strict=True)
            ),
            use_linear_projection=True,
            cross_attention_dim=feature_channels,
            addition_embed_type="text_time",
            addition_time_embed_dim=self.time_width,
            projection_class_embeddings_input_dim=6 * self.time_width + feature_channels,
        )
        self.baseline = Baseline(self) if self.baseline_width else None
        shown = self.vae.image_size
        original = self.original_size or shown
        sizes = torch.tensor([original, original, 0, 0, shown, shown], dtype=torch.float32)
        # Once transformers has loaded a model, torch.linspace, which makes these, may not heed a
        # device context: `from_pretrained` replaces it while torch notes which functions do.
        kept = DDPMScheduler(TRAIN_TIMES, **NOISE_SCHEDULE).alphas_cumprod.to(sizes.device)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("signal_levels", kept.sqrt(), persistent=False)
        self.register_buffer("noise_levels", (1 - kept).sqrt(), persistent=False)

    def blocks(self) -> list[nn.Module]:
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def random_draws(self) -> list[Draw]:
        """Dropped conditions, time and noise; noise of the features if there is any."""
        draws = [
            Draw("decoder-drop"),
            Draw("decoder-time"),
            Draw("decoder-noise", tuple(self.vae.feature_shape), "normal"),
        ]
        if self.feature_noise:
            draws.append(Draw("decoder-feature", tuple(self.feature_shape), "normal"))
        return draws

    def loss(self, features: Tensor, pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad(), own_precision(self.vae):
            latents = self.vae(pixels).float()
        if self.feature_noise:
            features = features + self.feature_noise * draws["decoder-feature"]
        dropped = draws["decoder-drop"] < self.cond_drop_prob
        features = torch.where(dropped[:, None, None, None], 0.0, features)
        baseline_loss = latents.new_zeros(())
        if self.baseline is not None:
            prediction = self.baseline(features)
            baseline_loss = mse(prediction, latents)
            latents = self.baseline.normalize(latents - prediction.detach())
        noise = draws["decoder-noise"]
        timesteps = (draws["decoder-time"] * TRAIN_TIMES).long()
        signal, level = self.levels(timesteps)
        noisy = signal * latents + level * noise
        target = noise if self.prediction == "epsilon" else signal * noise - level * latents
        return mse(self.denoise(noisy, timesteps, features), target) + baseline_loss

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise in latents at times int64 [B], each [B,1,1,1]; squares add up to 1."""
        signal, noise = self.signal_levels[timesteps], self.noise_levels[timesteps]
        return signal[:, None, None, None], noise[:, None, None, None]

    def denoise(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        """One UNet call: latents [B,Z,a,a], timesteps [B], features [B,C,h,w] -> [B,Z,a,a]."""
        dtype = self.unet.dtype
        features = features.to(dtype)
        tokens = features.flatten(2).transpose(1, 2)
        sizes = self.sizes.expand(len(latents), -1)
        return self.unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": tokens.mean(1), "time_ids": sizes},
        ).sample

    def decode_with(self, features: Tensor, seeds: list[int], options: DecodeOptions) -> Tensor:
        def pixels(latents: Tensor) -> Tensor:
            if self.baseline is not None:
                latents = self.baseline(features) + self.baseline.restore(latents)
            return self.vae.decode(latents)

        def on_step(step: int, _: Tensor, latents: Tensor) -> None:
            options.on_image(step, lambda: pixels(latents))

        noise = normal(self.vae.feature_shape, 0, "decoder", seeds, features.device)
        latents = self.sample(
            options.sampling,
            features,
            noise,
            negative_features=options.negative_features,
            on_step=on_step if options.on_image else None,
        )
        return pixels(latents)

    def scheduler(self, sampling: SamplerConfig) -> Any:
        """The scheduler of `sample`, with its timesteps set.

        Euler's times are the published ones, which begin at 1000 - 1000/steps. The others begin at
        the noise that sampling starts from, without which few steps are of no use to them (Lin et
        al. 2024, arXiv 2305.08891).
        """
        return diffusion_solver(
            sampling.name,
            sampling.num_inference_steps,
            num_train_timesteps=TRAIN_TIMES,
            **NOISE_SCHEDULE,
            prediction_type=self.prediction,
            timestep_spacing="leading" if sampling.name == "euler" else "trailing",
            steps_offset=1,
        )

    @torch.no_grad()
    def sample(
        self,
        sampling: SamplerConfig,
        features: Tensor,
        noise: Tensor,
        *,
        negative_features: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Denoise unit noise [B,Z,a,a] under features [B,C,h,w] to latents [B,Z,a,a].

        Guidance leads away from `negative_features` [1,C,h,w], zeros by default. `on_step` is
        called after every call of the UNet, with the latents and the estimate of the clean ones.
        """
        scale = sampling.guidance_scale
        if negative_features is None:
            negative = torch.zeros_like(features)
        else:
            negative = negative_features.expand_as(features)
        scheduler = self.scheduler(sampling)
        latents = noise * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps.to(features.device, non_blocking=True)
        for index, timestep in enumerate(scheduler.timesteps):
            inputs = scheduler.scale_model_input(latents, timestep)
            times = timesteps[index].expand(len(inputs))
            if scale == 1.0:
                predicted = self.denoise(inputs, times, features)
            else:
                conditional, unconditional = self.denoise(
                    inputs.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([features, negative])
                ).chunk(2)
                predicted = guided(conditional, unconditional, scale)
            predicted = predicted.float()
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            if on_step is not None:
                on_step(index, latents, self._clean(times.long(), inputs, predicted))
        return latents

    def _clean(self, timesteps: Tensor, noisy: Tensor, predicted: Tensor) -> Tensor:
        """The clean latents that the UNet sees behind noisy ones of unit variance [B,Z,a,a]."""
        signal, noise = self.levels(timesteps)
        if self.prediction == "epsilon":
            return (noisy - noise * predicted) / signal
        return signal * noisy - noise * predicted


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""
    return unconditional + guidance * (conditional - unconditional)


class Baseline(nn.Module):
    """Latents [B,Z,a,a] from features [B,C,h,w], token by token, and the scale of the residual."""

    def __init__(self, decoder: SDXLDecoder) -> None:
        super().__init__()
        channels, height, _ = decoder.feature_shape
        latent_channels, side, _ = decoder.vae.feature_shape
        factor = side // height
        if factor * height != side:
            raise UserError(
                f"decoder baseline_width: {side} latents a side are no multiple of {height} "
                "features a side; set baseline_width to 0."
            )
        width = decoder.baseline_width
        self.network = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Conv2d(width, latent_channels * factor**2, 1),
            nn.PixelShuffle(factor),
        )
        self.left = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.02)

    def forward(self, features: Tensor) -> Tensor:
        return self.network(features.to(self.network[0].weight.dtype)).float()

    def normalize(self, residual: Tensor) -> Tensor:
        """Residual to unit variance; in training this also updates the running scale."""
        return self.left(residual)

    def restore(self, normalized: Tensor) -> Tensor:
        """The inverse of `normalize` in evaluation mode."""
        deviation = (self.left.running_var + self.left.eps).sqrt()[:, None, None]
        return normalized * deviation + self.left.running_mean[:, None, None]
