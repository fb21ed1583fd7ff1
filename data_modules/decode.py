"""Encoded pictures to the squares that models take: uint8 [3,size,size], decoded once."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from triptych.pictures import square

DecodeWay = Literal["torchvision", "pillow"]


class PictureError(ValueError):
    """A picture that cannot be used.

    Args:
        reason: what follows "the picture": "is damaged".
        detail: what else helps to find the cause.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoder:
    """Decodes one picture to squares of one or several sizes.

    Args:
        way: "pillow" is the published transform exactly; "torchvision" is several times as fast
            and close to it.
        max_pixels: width times height of the largest picture that is decoded.
    """

    way: DecodeWay = "torchvision"
    max_pixels: int = 100_000_000

    def __call__(self, data: bytes, *sizes: int) -> list[Tensor]:
        """The picture as uint8 [3,size,size] for each of `sizes`.

        Raises:
            PictureError: it is damaged, or has more than `max_pixels`.
        """
        try:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError as error:
            raise PictureError("is damaged", str(error)) from error
        return [square(picture, size) for size in sizes]
