"""Pictures of a score in a folder: what a stopped run has made is not made again."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from triptych.utils.errors import PictureError, UserError
from triptych.utils.image_reader import read_image
from triptych.utils.png_metadata import attach, settings_of


class KeptPictures:
    """Each a PNG file that says what made it, whole or not there.

    Args:
        folder: where they are; made with the first.
        made: what decides a picture beside its prompt and seed: settings, a digest of the weights.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.folder, self.made = folder, made

    def load(self, file: str, prompt: str, seed: int) -> numpy.ndarray | None:
        """The picture uint8 [H,W,3] of that name; None if it is not there, or damaged.

        Raises:
            UserError: it is another one.
        """
        path = self.folder / file
        try:
            pixels = numpy.array(read_image(path))
        except PictureError:
            return None
        asked = self._asked(prompt, seed)
        found = settings_of(path)
        for name in dict.fromkeys([*asked, *found]):
            if found.get(name) != asked.get(name):
                raise UserError(
                    f"{path} was made otherwise ({name} {found.get(name)!r} then, "
                    f"{asked.get(name)!r} now); name another folder, or delete it."
                )
        return pixels

    def save(self, file: str, prompt: str, seed: int, pixels: numpy.ndarray) -> None:
        """Write a picture uint8 [H,W,3]."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        written = io.BytesIO()
        attach(Image.fromarray(pixels), self._asked(prompt, seed)).save(written, "PNG")
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(written.getvalue())
        os.replace(unfinished, path)

    def _asked(self, prompt: str, seed: int) -> dict[str, Any]:
        return {"prompt": prompt, "seed": seed, **self.made}
