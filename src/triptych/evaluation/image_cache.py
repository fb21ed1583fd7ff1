"""Image cache of a score in a folder: a stopped run resumes with its images."""

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
    """Cache of generated images: PNG files that store their settings, whole or not there.

    Args:
        folder: folder of the files; made with the first.
        made: settings of the images beside prompt and seed, and a digest of the weights.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.folder, self.made = folder, made

    def load(self, file: str, prompt: str, seed: int) -> numpy.ndarray | None:
        """The image uint8 [H,W,3] of that name; None if it is not there, or damaged.

        Raises:
            UserError: it is another one.
        """
        path = self.folder / file
        try:
            pixels = numpy.array(read_image(path))
        except ImageError:
            return None
        asked = self._asked(prompt, seed)
        found = read_metadata(path)
        for name in dict.fromkeys([*asked, *found]):
            if found.get(name) != asked.get(name):
                raise UserError(
                    f"{path} was made otherwise ({name} {found.get(name)!r} then, "
                    f"{asked.get(name)!r} now); name another folder, or delete it."
                )
        return pixels

    def save(self, file: str, prompt: str, seed: int, pixels: numpy.ndarray) -> None:
        """Write an image uint8 [H,W,3]."""
        path = self.folder / file
        image = embed_metadata(Image.fromarray(pixels), self._asked(prompt, seed))
        with replacing(path, durable=False) as file:
            image.save(file, "PNG")

    def _asked(self, prompt: str, seed: int) -> dict[str, Any]:
        return {"prompt": prompt, "seed": seed, **self.made}
