"""Feature spaces of image metrics: features of one network, and their entry in a report."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from triptych.evaluation.image_metrics.inception import PUBLISHED, Inception, load_inception
from triptych.evaluation.image_sources import Entry
from triptych.evaluation.report import sha256
from triptych.inference.pipeline import UnifiedPipeline
from triptych.utils.errors import UserError
from triptych.utils.images import image_to_tensor


class FeatureSpace(ABC):
    """Images in, one vector each out."""

    label: str
    """Name of the network in a report, and whether distances compare with published ones."""
    settings: dict[str, Any]
    """Settings that determine the features, for a report."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Features float32 [B,F] on the CPU, of images in RGB of any sizes."""


class EncoderSpace(FeatureSpace):
    """The features that a model of ours generates: those of its image encoder.

    Args:
        pipeline: its image encoder must have weights.
        pool: "mean" is one vector [C] an image, the mean over the grid; "grid" the whole grid
            [C*h*w], which also encodes where something is.
    """

    def __init__(self, pipeline: UnifiedPipeline, pool: Literal["mean", "grid"] = "mean") -> None:
        self.pipeline, self.pool = pipeline, pool
        encoder = pipeline.model.encoder
        name = type(encoder).__name__
        self.label = f"{name} features of {pipeline.name}, not comparable with published figures"
        self.settings = {
            "features": encoder.feature_config() | {"weights_sha256": _sha256(encoder)},
            "model": pipeline.name,
            "pool": pool,
        }

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        features = self.pipeline.encode(images, batch_size=len(images)).cpu()
        return features.mean((2, 3)) if self.pool == "mean" else features.flatten(1)


class InceptionSpace(FeatureSpace):
    """The features that FID is defined by: the pool before Inception's last layer, [2048].

    Args:
        weights: file of the network's weights; see `inception.load_inception`.
        device: device to compute on.
    """

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_inception(weights).to(self.device)
        published = sha256(Path(weights)).startswith(PUBLISHED)
        kind = "published" if published else "another file than the published, not comparable"
        self.label = f"Inception features (weights: {kind})"
        self.settings = {"features": "Inception", "weights": Path(weights), "scaling": "antialias"}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        scaled = [Inception.scaled(image_to_tensor(each)[None]) for each in images]
        return self.network.network(torch.cat(scaled).to(self.device)).cpu()


def _sha256(module: nn.Module) -> str:
    """Hash of a module's numbers in memory, dtype included: a checkpoint may have changed them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Extracted:
    """Features of a source's images."""

    features: Tensor
    """float32 [N,F]"""
    entries: list[Entry]
    """[N], without their images."""
    left_out: list[Entry]
    """Those that could not be read."""


def extract(space: FeatureSpace, entries: Iterable[Entry], batch_size: int = 64) -> Extracted:
    """Features of all images, `batch_size` of which are in memory at once.

    Raises:
        UserError: not one of them can be read.
    """
    features, kept, left_out = [], [], []
    for batch in batches(entries, batch_size):
        readable = [entry for entry in batch if entry.image is not None]
        left_out += [entry for entry in batch if entry.image is None]
        if readable:
            features.append(space([entry.image for entry in readable]))
        for entry in readable:
            entry.image = None
        kept += readable
    if not kept:
        why = f": {left_out[0].note}" if left_out else ""
        raise UserError(f"none of {len(left_out)} images can be read{why}.")
    return Extracted(torch.cat(features), kept, left_out)


def batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """`size` at a time, read only when they are wanted."""
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch
