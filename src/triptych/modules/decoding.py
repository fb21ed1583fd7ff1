"""The decoding panel: image features to pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces import (
    IMAGE_GENERATION,
    Batch,
    ImageEncoder,
    PixelDecoder,
    Preprocessing,
    drawn,
)
from triptych.modules.base import BaseModule, Metrics, target_features
from triptych.utils.errors import UserError
from triptych.utils.rng import Draw


class PixelDecoderModule(BaseModule):
    """Training of the diffusion decoder: images are reconstructed from their own features.

    Args:
        decoder: features to pixels.
        encoder, vae: encoder of the features and VAE of the decoder of a panel that is the root;
            a composer connects its own.
        trainable: as of `BaseModule`; None is the `trained_parts` of the decoder.
        training: other arguments of `BaseModule`, for a panel that is the root.
    """

    batch_objective = IMAGE_GENERATION

    def __init__(
        self,
        decoder: PixelDecoder,
        encoder: ImageEncoder | None = None,
        vae: ImageEncoder | None = None,
        *,
        trainable: list[str] | None = None,
        **training: Any,
    ) -> None:
        own = [f"decoder.{name}" for name in decoder.trained_parts]
        super().__init__(trainable=own if trainable is None else trainable, **training)
        self.vae, self.decoder, self.encoder = vae, decoder, encoder
        if encoder is not None:
            self.connect(encoder, vae)

    def connect(self, encoder: ImageEncoder, vae: ImageEncoder | None) -> None:
        """Set the encoder of the features to decode and the VAE of the decoder, before `build`.

        The encoder is kept in a tuple: its owner has registered it as its child.
        """
        self._neighbours = (encoder,)
        self.decoder.configure_shapes(encoder.feature_shape)
        self.decoder.connect(vae)

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Images uint8 [B,3,H,W] -> features [B,C,h,w] -> the decoder's diffusion loss."""
        (encoder,) = self._neighbours
        if batch.target_pixels is None:
            raise UserError("the decoder trains on images, but the batch brings none.")
        features = target_features(batch, encoder)
        self._set_null_features()
        draws = drawn(batch, self.random_draws(), self.seed, features.device)
        loss = self.decoder.loss(features, batch.target_pixels, draws)
        return loss, {"decoding": loss.detach()}

    def random_draws(self) -> list[Draw]:
        """Those of the decoder."""
        return self.decoder.random_draws()

    @torch.no_grad()
    def decode(self, features: Tensor, seeds: list[int], **options: Any) -> Tensor:
        """Features [B,C,h,w] -> pixels uint8 [B,3,H,W]; `options` as of `PixelDecoder.decode`."""
        self._set_null_features()
        return self.decoder.decode(features, seeds, **options)

    def _set_null_features(self) -> None:
        """Give a decoder that needs them the features of a blank image, once."""
        if not self.decoder.needs_null_features:
            return
        (encoder,) = self._neighbours
        if not encoder.is_built:
            raise UserError(
                encoder.absence
                or "this model has no weights of its image encoder, and its decoder guides against "
                "what that makes of a blank image; name them with --model.weights.encoder=FILE."
            )
        # Outside inference mode even in validation: training uses these features afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self.decoder.set_null_features(encoder.blank_features().float()[0])

    def preprocessing(self) -> Preprocessing:
        (encoder,) = self._neighbours
        size = encoder.image_size
        config = partial(self.feature_config_of, encoder, size)
        return Preprocessing(
            tokenizer=None,
            max_tokens=0,
            image_size=size,
            features=config,
            draws=tuple(self.random_draws()),
            seed=self.seed,
        )
