"""The role of a data set: samples by number, read piece by piece. A new format is a subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from triptych.data_modules.decode import Decoder
from triptych.utils.errors import ImageError

CAPTIONS = ("caption", "text", "instruction")
"""Usual names of captions among the metadata of a sample; the first that is there is taken."""
ImageRole = Literal["image", "source"]
"""Role of an image in a sample: the target that a caption describes, or the source of an edit."""


class BadSample(ValueError):
    """An unusable sample; training continues without it, and counts it by its reason.

    Args:
        key: name of the sample.
        reason: short phrase shared by all samples with this fault: "image is damaged".
        detail: further help to find the cause; logged, not counted.
    """

    def __init__(self, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"sample {key}: {reason}" + (f" ({detail})" if detail else ""))
        self.key, self.reason, self.detail = key, reason, detail

    def __reduce__(self):
        return type(self), (self.key, self.reason, self.detail)


@dataclass
class Sample:
    """One decoded sample, to look at."""

    key: str
    caption: str
    image: Image.Image
    metadata: dict


class DataSource(ABC):
    """Samples by number. The constructor takes configuration; `open` finds and checks the data.

    Picklable once open, for loader workers. Every method that reads a sample raises `BadSample`
    where that sample, and no other, is unusable. Data that a task does not use is never read.
    """

    name: str
    """Name in reports and error messages."""

    @abstractmethod
    def open(self) -> DataSource:
        """Find the data; idempotent; returns self.

        Raises:
            UserError: nothing is there, or nothing in it is usable.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def key(self, number: int) -> str:
        """Name of sample `number`, unique in this source."""

    @abstractmethod
    def caption(self, number: int) -> str:
        """The caption, or the instruction of an edit."""

    def captions(self, number: int) -> list[str]:
        """All captions of the sample, at least one; a task draws one of them each time."""
        return [self.caption(number)]

    @abstractmethod
    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        """The file of an image, still encoded."""

    def has_image(self, number: int, role: ImageRole) -> bool:
        """Whether a sample has an image of this role; found out without reading it."""
        return role == "image"

    def metadata(self, number: int) -> dict:
        """Additional metadata, such as "conversation", a list of [question, answer]."""
        return {}

    def image(
        self, number: int, role: ImageRole = "image", decoder: Decoder | None = None
    ) -> Image.Image:
        """An image at its own size, RGB, with the limits and the alpha rule of `decoder`."""
        try:
            return (decoder or Decoder()).whole(self.image_bytes(number, role))
        except ImageError as error:
            raise BadSample(self.key(number), f"{role} {error.reason}", error.detail) from error

    def __getitem__(self, number: int) -> Sample:
        return Sample(
            self.key(number), self.caption(number), self.image(number), self.metadata(number)
        )

    @property
    def shard_sizes(self) -> np.ndarray:
        """int64 [shards], samples of each shard; numbers count through them in this order.

        Reads in one shard are near each other: the order of training visits few shards at a time.
        """
        return np.array([len(self)], dtype=np.int64)

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray | None:
        """int64 [n], how long the captions are, in tokens if known, else in bytes; without reading
        them, so None where that is not possible. Batches are made of samples of like size.
        """
        return None
