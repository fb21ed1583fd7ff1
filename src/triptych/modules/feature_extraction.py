"""Image features, the targets of generation and the input of decoding: live, or made before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from triptych.interfaces import ImageEncoder
from triptych.modules.unified import UnifiedModule
from triptych.utils.errors import UserError


@dataclass
class Pictures:
    """Pictures of one shard."""

    shard: int
    keys: list[str]
    """[B]"""
    pixels: Tensor
    """uint8 [B,3,H,W]; B may be 0."""
    unreadable: int
    """How many more were tried."""


class FeatureModule(LightningModule):
    """One frozen encoder of a model, for `Trainer.predict`: Pictures -> features [B,C,h,w].

    Args:
        model: described, not built; nothing but the encoder is ever built.
        objective: "clip" for its image encoder, "vae" for its VAE.

    Raises:
        UserError: the model has no such encoder.
    """

    def __init__(self, model: UnifiedModule, objective: Literal["clip", "vae"] = "clip") -> None:
        super().__init__()
        part = "encoder" if objective == "clip" else "decoding"
        if getattr(model, part) is None:
            raise UserError(f"the model has no {part}, which objective {objective} needs.")
        model.left_out = {"understanding", "encoder", "generation", "decoding", "vae"}
        model.left_out -= {"encoder" if objective == "clip" else "vae"}
        self.model = model

    @property
    def encoder(self) -> ImageEncoder:
        return self.model.vae if "encoder" in self.model.left_out else self.model.encoder

    @property
    def picture_size(self) -> int:
        return self.model.picture_size

    def identity(self) -> dict[str, Any]:
        """See `Panel.identity_of`; reads the weight files."""
        return self.model.identity_of(self.encoder, self.picture_size)

    def configure_model(self) -> None:
        self.model.configure_model()

    def predict_step(self, batch: Pictures, batch_idx: int) -> Tensor:
        if not len(batch.keys):
            return torch.zeros(0, *self.encoder.feature_shape)
        return self.encoder(batch.pixels).float()
