"""Files of the images in answers of `triptych chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from triptych.utils.atomic_write import replacing
from triptych.utils.errors import UserError
from triptych.utils.images import encode_image


class AnswerImages:
    """Saves images to FOLDER/00000.png and so on, after those that are there.

    Args:
        folder: output folder, made with the first image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next: int | None = None

    def save(self, image: Image.Image) -> Path:
        """Write an image to a new file; return its path.

        Raises:
            UserError: the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._next is None:
                names = [path.stem for path in self.folder.glob("*.png")]
                self._next = 1 + max((int(name) for name in names if name.isdecimal()), default=-1)
            path = self.folder / f"{self._next:05d}.png"
            with replacing(path) as file:
                file.write(encode_image(image, "PNG"))
        except OSError as error:
            raise UserError(
                f"the image of the answer cannot be written to {self.folder}: {error.strerror}; "
                "name another folder with -o."
            ) from error
        self._next += 1
        return path

    def parts(self, content: list[str | Image.Image]) -> list[Any]:
        """Content of an answer for JSON, its images saved."""
        return [
            part if isinstance(part, str) else {"type": "image", "image": str(self.save(part))}
            for part in content
        ]
