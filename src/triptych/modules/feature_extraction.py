"""Extraction of image features, the targets of generation and the input of decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from triptych.interfaces import ImageEncoder
from triptych.modules.unified import UnifiedModule
from triptych.utils.errors import UserError


@dataclass
class Images:
    """Images of one shard."""

    shard: int
    keys: list[str]
    """[B]"""
    pixels: Tensor
    """uint8 [B,3,H,W]; B may be 0."""
    unreadable: int
    """Number of further images that were tried and could not be read."""
    named: int = 0
    """Number of these images that are of conversations, by name."""
    at_once: int | None = None
    """Number of images to encode at once; None for all."""


class FeatureModule(LightningModule):
    """One frozen encoder of a model, for `Trainer.predict`: Images -> features [B,C,h,w].

    Args:
        model: model that is described, not built; only its encoder is ever built.
        encoder: "clip" for its image encoder, "vae" for its VAE.

    Raises:
        UserError: the model has no such encoder.
    """

    def __init__(self, model: UnifiedModule, encoder: Literal["clip", "vae"] = "clip") -> None:
        super().__init__()
        self.part = "encoder" if encoder == "clip" else "vae"
        if getattr(model, self.part) is None:
            raise UserError(f"the model has no {self.part}, which the encoder {encoder!r} needs.")
        model.left_out = {"understanding", "encoder", "generation", "decoding", "vae"} - {self.part}
        self.model = model

    @property
    def encoder(self) -> ImageEncoder:
        return getattr(self.model, self.part)

    @property
    def image_size(self) -> int:
        return self.model.image_size

    def identity(self) -> dict[str, Any]:
        """See `BaseModule.feature_config_of`; reads the weight files."""
        return self.model.feature_config_of(self.encoder, self.image_size)

    def refuse_trained(self, names: Iterable[str]) -> None:
        """Refuse a training checkpoint that trained the encoder: its features are hashed by file.

        Args:
            names: full names of the tensors of the checkpoint.

        Raises:
            UserError: one is of the encoder.
        """
        if any(name.startswith(f"{self.part}.") for name in names):
            raise UserError(
                "the checkpoint trained the encoder, and features are told apart by weight files; "
                "make one with `triptych export` and add --model.weights.encoder=FILE."
            )

    def configure_model(self) -> None:
        self.model.configure_model()

    def predict_step(self, batch: Images, batch_idx: int) -> Tensor:
        if not len(batch.keys):
            return torch.zeros(0, *self.encoder.feature_shape)
        parts = batch.pixels.split(batch.at_once or len(batch.keys))
        return torch.cat([self.encoder(part).float() for part in parts])
