"""Classification of an object's colour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from triptych.evaluation.geneval.detection import DetectedObject
from triptych.evaluation.judges.hub import load
from triptych.utils.png_metadata import shown_name
from triptych.utils.tokens import break_control_tokens

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUND = "#999"
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


def crop(image: Image.Image, detected: DetectedObject) -> Image.Image:
    """Crop an image to an object's box; pixels outside of its mask become grey."""
    if detected.mask is not None:
        blank = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, blank, Image.fromarray(detected.mask))
    return image.crop(detected.box)


class ColourClassifier(ABC):
    """Classifier of the colours of objects."""

    name: str
    """Name in reports."""

    @abstractmethod
    def classify(self, crops: Sequence[Image.Image], object_name: str) -> list[str]:
        """Return one of COLOURS for each crop of an object of that name."""


class ClipColours(ColourClassifier):
    """CLIP colour classifier: nearest mean of three sentences about each colour, as published.

    Args:
        source: folder or hub id of the model, such as openai/clip-vit-large-patch14, the official
            one.
        device: device to compute on.

    Raises:
        UserError: the model does not exist.
    """

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        self.name = f"CLIP {shown_name(source)} (transformers)"
        self.tokenizer, self.processor = (
            load(part, source) for part in ("AutoTokenizer", "AutoImageProcessor")
        )
        self.texts, self.images = (
            load(part, source).eval().to(device)
            for part in ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection")
        )
        self._directions = lru_cache(maxsize=None)(self._directions_of)

    @torch.no_grad()
    def classify(self, crops: Sequence[Image.Image], object_name: str) -> list[str]:
        inputs = self.processor(images=list(crops), return_tensors="pt").to(self.images.device)
        similarity = self.images(**inputs).image_embeds @ self._directions(object_name).T
        return [COLOURS[index] for index in similarity.argmax(1).tolist()]

    @torch.no_grad()
    def _directions_of(self, object_name: str) -> Tensor:
        """Unit vectors [colours,D]: normalized means of the unit vectors of all templates."""
        name = break_control_tokens(self.tokenizer, object_name)
        texts = [text.format(colour, name) for colour in COLOURS for text in TEMPLATES]
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.texts.device)
        vectors = torch.nn.functional.normalize(self.texts(**inputs).text_embeds, dim=-1)
        means = vectors.view(len(COLOURS), len(TEMPLATES), -1).mean(1)
        return torch.nn.functional.normalize(means, dim=-1)
