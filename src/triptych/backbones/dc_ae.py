"""SANA's autoencoder: diffusers' AutoencoderDC, 32 times smaller a side."""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from triptych.backbones.vae import decode_in_chunks
from triptych.interfaces import ImageEncoder
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit

SCALE_OF_ATTENTION = (5,)  # one convolution of 5x5 beside the plain queries, keys and values


class DCAutoencoder(ImageEncoder):
    """Deep-compression autoencoder (Chen et al. 2024, arXiv 2410.10733), without sampling.

    The defaults are dc-ae-f32c32-sana-1.0, the one that SANA 1600M comes with.

    Args:
        image_size: side in pixels.
        latent_channels: Z.
        block_widths: channels of each level; every level after the first halves the side.
        encoder_depths, decoder_depths: blocks of each level.
        attention_levels: number of last levels with linear attention; the others have
            convolutions.
        scaling: factor from raw to unit-variance latents.
    """

    fsdp_forward_methods = (*ImageEncoder.fsdp_forward_methods, "decode")

    def __init__(
        self,
        image_size: int = 512,
        latent_channels: int = 32,
        block_widths: list[int] | None = None,
        *,
        encoder_depths: list[int] | None = None,
        decoder_depths: list[int] | None = None,
        attention_levels: int = 3,
        scaling: float = 0.41407,
    ) -> None:
        super().__init__()
        self.block_widths = block_widths or [128, 256, 512, 512, 1024, 1024]
        self.encoder_depths = encoder_depths or [2, 2, 2, 3, 3, 3]
        self.decoder_depths = decoder_depths or [3, 3, 3, 3, 3, 3]
        levels = len(self.block_widths)
        if not levels == len(self.encoder_depths) == len(self.decoder_depths):
            raise UserError(
                f"VAE block_widths {self.block_widths}, encoder_depths {self.encoder_depths} and "
                f"decoder_depths {self.decoder_depths} must be equally long."
            )
        shrink = 2 ** (levels - 1)
        if image_size % shrink:
            raise UserError(f"VAE image_size {image_size} is not a multiple of {shrink}.")
        self.image_size, self.latent_channels = image_size, latent_channels
        self.attention_levels, self.scaling = attention_levels, scaling
        self.feature_shape = (latent_channels, image_size // shrink, image_size // shrink)

    def build(self) -> None:
        plain = len(self.block_widths) - self.attention_levels
        blocks = ("ResBlock",) * plain + ("EfficientViTBlock",) * self.attention_levels
        scales = ((),) * plain + (SCALE_OF_ATTENTION,) * self.attention_levels
        self.vae = AutoencoderDC(
            latent_channels=self.latent_channels,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=tuple(self.block_widths),
            decoder_block_out_channels=tuple(self.block_widths),
            encoder_layers_per_block=tuple(self.encoder_depths),
            decoder_layers_per_block=tuple(self.decoder_depths),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=self.scaling,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] of any size -> scaled latents [B,Z,h,w]."""
        images = pixels_to_unit(pixels, self.image_size)
        return self.vae.encode(images.to(self.vae.dtype)).latent * self.scaling

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B,Z,h,w] -> pixels uint8 [B,3,H,W]."""
        raw = latents.to(self.vae.dtype) / self.scaling
        return decode_in_chunks(lambda some: self.vae.decode(some).sample, raw, self.image_size)
