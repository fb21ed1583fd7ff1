"""DataSource, the interface of a data set: random access to samples. A new format is a subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from triptych.data_modules.decode import Decoder
from triptych.utils.errors import ImageError, TextError

CAPTION_KEYS = ("caption", "text", "instruction")
"""Usual keys of the caption in the metadata of a sample; the first existing one is taken."""
ImageRole = Literal["image", "source"]
"""Role of an image in a sample: the target that a caption describes, or the source of an edit."""


class BadSample(ValueError):
    """An unusable sample; training skips it, and counts it by its reason.

    Args:
        key: key of the sample.
        reason: short phrase shared by all samples with this fault, such as "image is damaged".
        detail: details of the cause; logged, not counted.
    """

    def __init__(self, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"sample {key}: {reason}" + (f" ({detail})" if detail else ""))
        self.key, self.reason, self.detail = key, reason, detail

    def __reduce__(self):
        return type(self), (self.key, self.reason, self.detail)


@contextmanager
def bad_sample_on_error(key: str, label: str) -> Iterator[None]:
    """Turn the ImageError or TextError of one member of a sample into a `BadSample`.

    Args:
        key: key of the sample.
        label: name of the member in the reason, such as "caption".
    """
    try:
        yield
    except (ImageError, TextError) as error:
        raise BadSample(key, f"{label} {error.reason}", error.detail) from error


@dataclass
class Sample:
    """One decoded sample, for inspection."""

    key: str
    caption: str
    image: Image.Image
    metadata: dict


class DataSource(ABC):
    """Samples by number. The constructor takes configuration; `open` finds and checks the data.

    An open source is picklable, for loader workers. Every method that reads a sample raises
    `BadSample` if that sample, and no other, is unusable. Data that a task does not use is never
    read.
    """

    name: str
    """Name in reports and error messages."""

    @abstractmethod
    def open(self) -> DataSource:
        """Find the data; idempotent; return self.

        Raises:
            UserError: there is no data, or none is usable.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def key(self, number: int) -> str:
        """Key of sample `number`, unique in this source."""

    @abstractmethod
    def caption(self, number: int) -> str:
        """The caption, or the instruction of an edit."""

    def captions(self, number: int) -> list[str]:
        """All captions of the sample, at least one; a task draws one of them at each use."""
        return [self.caption(number)]

    @abstractmethod
    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        """Encoded image file."""

    def named_image_bytes(self, number: int, name: str) -> bytes:
        """Encoded image file that a message of the sample names, such as "0.jpg"."""
        raise BadSample(
            self.key(number), "no images by name", "only shards and .jsonl files have them"
        )

    def has_image(self, number: int, role: ImageRole) -> bool:
        """Whether a sample has an image of this role; does not read the image."""
        return role == "image"

    def metadata(self, number: int) -> dict:
        """Additional metadata, such as "conversation", a list of [question, answer]."""
        return {}

    def image(
        self, number: int, role: ImageRole = "image", decoder: Decoder | None = None
    ) -> Image.Image:
        """Decoded RGB image at its full size, with the limits and the alpha rule of `decoder`."""
        with bad_sample_on_error(self.key(number), role):
            return (decoder or Decoder()).decode_full(self.image_bytes(number, role))

    def __getitem__(self, number: int) -> Sample:
        return Sample(
            self.key(number), self.caption(number), self.image(number), self.metadata(number)
        )

    @property
    def shard_sizes(self) -> np.ndarray:
        """int64 [shards], number of samples of each shard, in the order of the sample numbers.

        Training reads few shards at a time, so that its reads are near each other.
        """
        return np.array([len(self)], dtype=np.int64)

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray | None:
        """int64 [n], caption lengths for length buckets, in tokens if known, else in bytes.

        None if they are unknown without reading the captions.
        """
        return None
