"""Training of the image encoder and the VAE, for presets that cannot download them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from triptych.backbones.eva_clip import EvaClip
from triptych.backbones.vae import KLAutoencoder
from triptych.interfaces import IMAGE_GENERATION, Batch, LazyModule, drawn
from triptych.modules.base import BaseModule, Metrics
from triptych.utils.images import pixels_to_unit
from triptych.utils.rng import Draw


class TextTower(nn.Module):
    """A small bidirectional transformer over caption ids [B,T]; mean-pooled to [B,width]."""

    def __init__(self, vocabulary: int, width: int, depth: int, max_tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        weight = attention_mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


class EncodingHeads(LazyModule):
    """Networks that the encoder's training needs and inference does not.

    Args:
        vocabulary: number of token ids.
        width, depth: sizes of the text tower.
        joint_width: width of the joint embedding space of images and captions.
        max_tokens: length limit of a caption prompt.
    """

    def __init__(
        self,
        vocabulary: int = 1024,
        width: int = 64,
        depth: int = 2,
        joint_width: int = 64,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.vocabulary, self.width, self.depth = vocabulary, width, depth
        self.joint_width, self.max_tokens = joint_width, max_tokens

    def configure_shapes(self, feature_shape: tuple[int, int, int], image_size: int) -> None:
        """Shape (C,h,w) of the encoder's features and side of its images; before `build`."""
        self.feature_shape, self.image_size = feature_shape, image_size

    def build(self) -> None:
        channels, side, _ = self.feature_shape
        cell = self.image_size // side
        self.text = TextTower(self.vocabulary, self.width, self.depth, self.max_tokens)
        self.text_projection = nn.Linear(self.width, self.joint_width)
        self.image_projection = nn.Linear(channels, self.joint_width)
        # CLIP's start (Radford et al. 2021): temperature 0.07
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.pixels = nn.Conv2d(channels, 3 * cell * cell, 1)


class EncodingModule(BaseModule):
    """CLIP's contrastive loss, pixels from features by a linear map, and the VAE's loss.

    The linear map makes each feature token encode the look of its part of the image; the
    contrastive loss makes it encode the caption. Encoder and VAE share the batch, not
    their gradients.

    Args:
        heads: text tower and projections, thrown away afterwards.
        pixel_weight: weight of the encoder's pixel loss against the contrastive loss.
        kl_weight: weight of the VAE's divergence from the unit Gaussian.
        feature_noise: deviation of noise on the features before the linear map: features that
            must survive noise are far apart, which a generator and a decoder both need.
        training: arguments of `BaseModule`.
    """

    batch_objective = IMAGE_GENERATION

    def __init__(
        self,
        heads: EncodingHeads,
        *,
        pixel_weight: float = 20.0,
        kl_weight: float = 1e-3,
        feature_noise: float = 0.3,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.heads, self.pixel_weight, self.kl_weight = heads, pixel_weight, kl_weight
        self.feature_noise = feature_noise

    def connect(self, encoder: EvaClip, vae: KLAutoencoder) -> None:
        """Set the encoder and the VAE that are trained, before `build`.

        They are kept in a tuple: their owner has registered them as its children.
        """
        self._neighbours = encoder, vae
        self.heads.configure_shapes(encoder.feature_shape, encoder.image_size)

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Three losses of captioned images [B,3,H,W] uint8, summed."""
        encoder, vae = self._neighbours
        if self.training and batch.step == 0 and vae.linear_skip:
            vae.start_from_principal_components(batch.target_pixels)
        images = pixels_to_unit(batch.target_pixels)
        features = encoder(batch.target_pixels)
        contrastive, accuracy = self.contrastive(features, batch)
        draws = drawn(batch, self.random_draws(), self.seed, features.device)
        noisy = features + self.feature_noise * draws["encoder-feature"]
        cell = images.shape[-1] // features.shape[-1]
        shown = nn.functional.pixel_shuffle(self.heads.pixels(noisy), cell)
        pixel = nn.functional.mse_loss(shown, images)
        reconstruction, divergence = self.autoencode(batch, images, draws["vae"])
        loss = contrastive + self.pixel_weight * pixel
        loss = loss + reconstruction + self.kl_weight * divergence
        return loss, {
            "contrastive": contrastive.detach(),
            "retrieval": accuracy,
            "pixel_mse": pixel.detach(),
            "vae_reconstruction": reconstruction.detach(),
            "vae_kl": divergence.detach(),
        }

    def random_draws(self) -> list[Draw]:
        """Noise of the features and of the VAE's posterior sample."""
        encoder, vae = self._neighbours
        return [
            Draw("encoder-feature", tuple(encoder.feature_shape), "normal"),
            Draw("vae", tuple(vae.feature_shape), "normal"),
        ]

    def contrastive(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """CLIP's symmetric cross entropy, and how often an image finds its caption."""
        heads = self.heads
        image = nn.functional.normalize(heads.image_projection(features.mean((2, 3))), dim=-1)
        text = heads.text_projection(heads.text(batch.input_ids, batch.attention_mask))
        logits = heads.log_scale.exp().clamp(max=100) * image @ nn.functional.normalize(text).T
        truth = torch.arange(len(logits), device=logits.device)
        loss = nn.functional.cross_entropy(logits, truth)
        loss = (loss + nn.functional.cross_entropy(logits.T, truth)) / 2
        return loss, (logits.argmax(1) == truth).float().mean()

    def autoencode(self, batch: Batch, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (L1 + 5 MSE) from a posterior sample, and mean KL per latent number.

        `noise` [B,Z,a,a] is that of the sample.
        """
        _, vae = self._neighbours
        posterior = vae.posterior(batch.target_pixels)
        latents = posterior.mean + posterior.std * noise
        vae.standardize(posterior.mean.detach())  # keeps the running statistics
        shown = vae.images(latents)
        reconstruction = nn.functional.l1_loss(shown, images) + 5 * nn.functional.mse_loss(
            shown, images
        )
        return reconstruction, posterior.kl().mean() / posterior.mean[0].numel()
