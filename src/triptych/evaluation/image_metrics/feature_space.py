"""Feature spaces of image metrics: features of one network, and their description in a report."""

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
    """Map from images to feature vectors."""

    label: str
    """Name of the network in a report, and whether distances are comparable with published ones."""
    settings: dict[str, Any]
    """Settings that determine the features, for a report."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Features float32 [B,F] on the CPU of RGB images of any sizes."""


class EncoderSpace(FeatureSpace):
    """Features of a model's own image encoder, which its generator produces.

    Args:
        pipeline: pipeline of a model whose image encoder has weights.
        pool: "mean" gives the mean over the grid [C]; "grid" the whole grid [C*h*w], which also
            encodes positions.
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
    """Features of the definition of FID: the pooling before Inception's last layer, [2048].

    Args:
        weights: weight file of the network; see `inception.load_inception`.
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
    """Hash of all weights in memory, dtypes included: a checkpoint may have changed them."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


@dataclass
class Extracted:
    """Features of a source's images."""

    features: Tensor
    """float32 [N,F]"""
    entries: list[Entry]
    """Entries [N] without their images."""
    excluded: list[Entry]
    """Entries that could not be read."""


def extract(space: FeatureSpace, entries: Iterable[Entry], batch_size: int = 64) -> Extracted:
    """Extract the features of all images, with at most `batch_size` images in memory.

    Raises:
        UserError: no image can be read.
    """
    features, extracted, excluded = [], [], []
    for batch in batches(entries, batch_size):
        readable = [entry for entry in batch if entry.image is not None]
        excluded += [entry for entry in batch if entry.image is None]
        if readable:
            features.append(space([entry.image for entry in readable]))
        for entry in readable:
            entry.image = None
        extracted += readable
    if not extracted:
        why = f": {excluded[0].note}" if excluded else ""
        raise UserError(f"none of {len(excluded)} images can be read{why}.")
    return Extracted(torch.cat(features), extracted, excluded)


def batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Yield `size` entries at a time, reading them lazily."""
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch
