"""Captioned images of Tux Paint: objects and scenes with transparent borders."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from verify_real.parts import STAMPS

GREY = (128, 128, 128)


@dataclass(frozen=True)
class Stamp:
    """An image with its English caption.

    Args:
        name: path inside of the package, without the suffix.
        caption: first line of the text beside the image.
    """

    name: str
    caption: str


class Stamps:
    """All stamps with a caption, ordered by name."""

    def __init__(self, folder: Path) -> None:
        self.zip = zipfile.ZipFile(folder / STAMPS)
        names = set(self.zip.namelist())
        images = sorted(name[:-4] for name in names if name.endswith(".png"))
        read = {name: self._caption(name) for name in images if f"{name}.txt" in names}
        self.all = [Stamp(name, caption) for name, caption in read.items() if caption]

    def _caption(self, name: str) -> str:
        return self.zip.read(f"{name}.txt").decode().partition("\n")[0].strip()

    def image(self, name: str) -> Image.Image:
        """The image, RGBA, cropped to what is not transparent."""
        image = Image.open(io.BytesIO(self.zip.read(f"{name}.png"))).convert("RGBA")
        return image.crop(image.getchannel("A").getbbox())


def paste(
    stamps: Sequence[tuple[Image.Image, tuple[int, int]]], size: int, colour: tuple = GREY
) -> Image.Image:
    """RGB image of `size` pixels a side, with RGBA images centred at these points (x, y)."""
    canvas = Image.new("RGB", (size, size), colour)
    for image, (x, y) in stamps:
        canvas.paste(image, (x - image.width // 2, y - image.height // 2), image)
    return canvas


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The image, its longer side scaled to `size` pixels."""
    factor = size / max(image.size)
    sides = [max(1, round(side * factor)) for side in image.size]
    return image.resize(sides, Image.Resampling.LANCZOS)
