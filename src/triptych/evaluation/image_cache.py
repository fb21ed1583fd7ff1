"""Cache of generated images in a folder, from which an interrupted evaluation resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from triptych.utils.atomic_write import replacing
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import read_image
from triptych.utils.png_metadata import embed_metadata, read_metadata


class ImageCache:
    """Cache of generated images: PNG files, written atomically, that store their settings.

    Args:
        folder: folder of the files, created with the first one.
        settings: settings of all images besides prompt and seed, with a hash of the weights.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def load(self, file: str, prompt: str, seed: int) -> numpy.ndarray | None:
        """Load an image uint8 [H,W,3] by its file name; None if it is missing or damaged.

        Raises:
            UserError: the stored image has other settings.
        """
        path = self.folder / file
        try:
            pixels = numpy.array(read_image(path))
        except ImageError:
            return None
        settings = self._settings(prompt, seed)
        stored = read_metadata(path)
        for name in dict.fromkeys([*settings, *stored]):
            if stored.get(name) != settings.get(name):
                raise UserError(
                    f"{path} was made otherwise ({name} {stored.get(name)!r} then, "
                    f"{settings.get(name)!r} now); name another folder, or delete it."
                )
        return pixels

    def save(self, file: str, prompt: str, seed: int, pixels: numpy.ndarray) -> None:
        """Write an image uint8 [H,W,3]."""
        path = self.folder / file
        image = embed_metadata(Image.fromarray(pixels), self._settings(prompt, seed))
        with replacing(path, durable=False) as file:
            image.save(file, "PNG")

    def _settings(self, prompt: str, seed: int) -> dict[str, Any]:
        return {"prompt": prompt, "seed": seed, **self.settings}
