"""The VAE: diffusers' AutoencoderKL, as the decoder's latent space and as an image encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from triptych.interfaces import ImageEncoder
from triptych.utils.errors import UserError
from triptych.utils.finite import all_finite, require_finite
from triptych.utils.images import pixels_to_unit, unit_to_pixels

AT_ONCE = 2**22  # pixels decoded at once, 4 images of 1024: the VAE's memory is far above theirs


class KLAutoencoder(ImageEncoder):
    """Pixels to standardized latents and back. The defaults are SDXL's.

    Args:
        image_size: side in pixels.
        latent_channels: number Z of latent channels.
        block_widths: channels of each level; every level after the first halves the side.
        layers_per_block, norm_groups: sizes as in diffusers.
        patch_size: pixels folded into channels before the first convolution (1 is SDXL). A small
            autoencoder on patches trains in minutes where one on pixels needs hours.
        linear_skip: whether to add a learned linear map from each patch to its latent, and back.
            Needs a single level. Patches of simple images are nearly a linear subspace: the maps
            find it in minutes and the networks learn what is left.
        scaling: factor from raw to unit-variance latents; SDXL's is 0.13025. None learns a
            running mean and deviation per channel with the autoencoder.
        tile: side in pixels of overlapping tiles, in which larger images are decoded; these are
            blended where they meet: memory stops growing with the image.
    """

    fsdp_forward_methods = (*ImageEncoder.fsdp_forward_methods, "decode")

    def __init__(
        self,
        image_size: int = 1024,
        latent_channels: int = 4,
        *,
        block_widths: list[int] | None = None,
        layers_per_block: int = 2,
        norm_groups: int = 32,
        patch_size: int = 1,
        linear_skip: bool = False,
        scaling: float | None = 0.13025,
        tile: int = 1024,
    ) -> None:
        super().__init__()
        self.block_widths = block_widths or [128, 256, 512, 512]
        shrink = patch_size * 2 ** (len(self.block_widths) - 1)
        if image_size % shrink:
            raise UserError(f"VAE image_size {image_size} is not a multiple of {shrink}.")
        self.image_size, self.latent_channels, self.patch_size = (
            image_size,
            latent_channels,
            patch_size,
        )
        self.layers_per_block, self.norm_groups, self.scaling = (
            layers_per_block,
            norm_groups,
            scaling,
        )
        if linear_skip and len(self.block_widths) > 1:
            raise UserError("VAE linear_skip needs a single level in block_widths.")
        if tile % shrink:
            raise UserError(f"VAE tile {tile} is not a multiple of {shrink}.")
        self.linear_skip, self.tile = linear_skip, tile
        side = image_size // shrink
        self.feature_shape = (latent_channels, side, side)

    @property
    def feature_std(self) -> float | None:
        return 1.0 if self.scaling is None else None

    def build(self) -> None:
        levels = len(self.block_widths)
        channels = 3 * self.patch_size**2
        self.vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=self.latent_channels,
            block_out_channels=tuple(self.block_widths),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=self.layers_per_block,
            norm_num_groups=self.norm_groups,
        )
        self.vae.tile_sample_min_size = self.tile // self.patch_size
        self.vae.tile_latent_min_size = self.tile * self.feature_shape[1] // self.image_size
        if self.linear_skip:
            self.skip_in = nn.Conv2d(channels, self.latent_channels, 1)
            self.skip_out = nn.Conv2d(self.latent_channels, channels, 1)
            # The networks start silent and nearly noiseless: only the linear maps at first.
            nn.init.zeros_(self.vae.quant_conv.weight)
            nn.init.zeros_(self.vae.quant_conv.bias)
            nn.init.constant_(self.vae.quant_conv.bias[self.latent_channels :], -5.0)
            nn.init.zeros_(self.vae.decoder.conv_out.weight)
            nn.init.zeros_(self.vae.decoder.conv_out.bias)
        self.norm = (
            nn.BatchNorm2d(self.latent_channels, affine=False, momentum=0.02)
            if self.scaling is None
            else nn.Identity()
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] -> standardized latents [B,Z,h,w], the mean of the posterior."""
        return self.standardize(self.posterior(pixels).mean)

    def posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """The Gaussian posterior of raw latents [B,Z,h,w]."""
        images = pixels_to_unit(pixels, self.image_size)
        patches = nn.functional.pixel_unshuffle(images, self.patch_size).to(self.vae.dtype)
        posterior = self.vae.encode(patches).latent_dist
        if not self.linear_skip:
            return posterior
        mean = posterior.mean + self.skip_in(patches)
        return DiagonalGaussianDistribution(torch.cat([mean, posterior.logvar], 1))

    @torch.no_grad()
    def start_from_principal_components(self, pixels: Tensor) -> None:
        """Set the linear maps to the leading principal components of the patches of `pixels`.

        Whitened: each raw latent starts with unit variance over images uint8 [B,3,H,W].
        """
        patches = nn.functional.pixel_unshuffle(pixels_to_unit(pixels), self.patch_size)
        rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
        mean = rows.mean(0)
        _, scale, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        axes = axes[: self.latent_channels]
        deviation = (scale[: self.latent_channels] / len(rows) ** 0.5).clamp_min(1e-3)
        into, back = axes / deviation[:, None], axes * deviation[:, None]
        self.skip_in.weight.copy_(into[..., None, None])
        self.skip_in.bias.copy_(-(into @ mean))
        self.skip_out.weight.copy_(back.T[..., None, None])
        self.skip_out.bias.copy_(mean)

    def standardize(self, latents: Tensor) -> Tensor:
        """Raw to unit-scale latents."""
        return self.norm(latents) if self.scaling is None else latents * self.scaling

    def raw(self, latents: Tensor) -> Tensor:
        """Unit-scale to raw latents, the inverse of `standardize` in evaluation mode."""
        if self.scaling is not None:
            return latents / self.scaling
        deviation = (self.norm.running_var + self.norm.eps).sqrt()[:, None, None]
        return latents * deviation + self.norm.running_mean[:, None, None]

    def images(self, raw_latents: Tensor) -> Tensor:
        """Raw latents [B,Z,h,w] -> images [B,3,H,W] in about [-1,1]; differentiable."""
        raw_latents = raw_latents.to(self.vae.dtype)
        patches = self.vae.decode(raw_latents).sample
        if self.linear_skip:
            patches = patches + self.skip_out(raw_latents)
        return nn.functional.pixel_shuffle(patches, self.patch_size)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Standardized latents [B,Z,h,w] -> pixels uint8 [B,3,H,W]."""
        self.vae.use_tiling = self.image_size > self.tile
        try:
            return decode_in_chunks(
                lambda some: self.images(self.raw(some)), latents, self.image_size
            )
        finally:
            self.vae.use_tiling = False  # it would also encode so


def decode_in_chunks(images: Callable[[Tensor], Tensor], latents: Tensor, side: int) -> Tensor:
    """`images` of latents [B,Z,h,w] as uint8 [B,3,H,W], no more at once than AT_ONCE pixels.

    Raises:
        NotFiniteError: a pixel is NaN or infinite; as uint8 it would be black or white.
    """
    pixels, finite = [], []
    for part in latents.split(max(1, AT_ONCE // side**2)):
        decoded = images(part)
        pixels.append(unit_to_pixels(decoded))
        finite.append(all_finite(decoded))
    require_finite(torch.stack(finite).all(), "the decoder's pixels")
    return torch.cat(pixels)
