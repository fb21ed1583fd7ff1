"""Output folder of images: finished and remaining jobs, results.jsonl, grid.png.

An image is written under another name and then renamed, so a file is complete or missing. It
stores its request, so that nothing else is needed to resume.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.utils.atomic_write import replacing
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import read_header, read_image
from triptych.utils.png_metadata import embed_metadata, read_metadata

MAX_GRID_IMAGES = 64
"""Maximum number of images in grid.png; the first ones are shown."""
MAX_GRID_SIDE = 256
"""Maximum side in pixels of an image in grid.png."""


@dataclass
class ImageJob:
    """An image to generate."""

    file: str
    id: str
    request: dict[str, Any]
    """Everything given that determines the image: prompt, seed, settings, model."""
    source: Path | None = None
    """Image that is edited or reconstructed."""

    @property
    def label(self) -> str:
        """The request in one line."""
        text = self.request.get("prompt") or self.request.get("instruction") or str(self.source)
        return " ".join(text.split())


class OutputFolder:
    """A folder of images.

    Args:
        folder: path of the folder, which is created with the first image.
        jobs: all images of the command, including those of other --part values.
        image_grid: whether to write grid.png; published scorers would take it for a sample.

    Raises:
        UserError: the folder cannot be written to, or two images have one name.
    """

    def __init__(self, folder: Path, jobs: Sequence[ImageJob], image_grid: bool = True) -> None:
        self.folder, self.jobs, self.image_grid = folder, list(jobs), image_grid
        files = [job.file for job in self.jobs]
        if len(set(files)) < len(files):
            twice = next(file for file in files if files.count(file) > 1)
            raise UserError(f"two images would be called {twice}; give their lines other ids.")
        place = next(each for each in [folder, *folder.absolute().parents] if each.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be written to ({error.strerror}); choose another "
                "with --out."
            ) from error

    def unfinished(self, jobs: Sequence[ImageJob]) -> list[ImageJob]:
        """Unfinished jobs among `jobs`.

        Raises:
            UserError: another image is stored under a job's name.
        """
        return [job for job in jobs if not self._done(job)]

    def _done(self, job: ImageJob) -> bool:
        path = self.folder / job.file
        if not path.is_file():
            return False
        try:
            read_image(path)
        except ImageError:
            return False  # damaged: generated again
        other = "choose another folder with --out, or delete it"
        try:
            request = read_metadata(path)["request"]
        except (UserError, KeyError) as error:
            raise UserError(f"{path} is an image that this command did not make; {other}.") from (
                error
            )
        for key in dict.fromkeys([*request, *job.request]):
            if request.get(key) != job.request.get(key):
                raise UserError(
                    f"{path} was made with other settings ({key} {request.get(key)!r} then, "
                    f"{job.request.get(key)!r} now); {other}."
                )
        return True

    def check_weights(self, weights: str) -> None:
        """Refuse to mix images of several weights, such as before and after more training.

        Args:
            weights: hash of the loaded weights.

        Raises:
            UserError: a finished image was generated with other weights.
        """
        for job in self._finished():
            try:
                recorded = read_metadata(self.folder / job.file).get("weights", weights)
            except UserError:
                continue  # damaged: generated again
            if recorded != weights:
                raise UserError(
                    f"{self.folder / job.file} was made with other weights than those of this "
                    "model, or in another precision; choose another folder with --out, or delete "
                    "it."
                )

    def save(self, job: ImageJob, image: Image.Image, settings: dict[str, Any]) -> Path:
        """Write an image atomically, with its settings embedded."""
        path = self.folder / job.file
        embed_metadata(image, {**settings, "id": job.id, "request": job.request})
        with replacing(path, durable=False) as file:
            image.save(file, "PNG")
        return path

    def finish(self) -> None:
        """Write results.jsonl and grid.png of all finished images, of every --part.

        Processes may finish together: the last one to write lists the folder after all others.
        """
        ready = self._finished()
        while ready:
            lines = [json.dumps(_result(job, self.folder), ensure_ascii=False) for job in ready]
            with replacing(self.folder / "results.jsonl", durable=False) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
            if self.image_grid:
                with replacing(self.folder / "grid.png", durable=False) as file:
                    _grid_of(ready[:MAX_GRID_IMAGES], self.folder).save(file, "PNG")
            if len(again := self._finished()) == len(ready):
                return
            ready = again

    def _finished(self) -> list[ImageJob]:
        return [job for job in self.jobs if (self.folder / job.file).is_file()]


def _result(job: ImageJob, folder: Path) -> dict[str, Any]:
    settings = read_metadata(folder / job.file)
    top = {key: settings[key] for key in ("prompt", "seed") if key in settings}
    return {"id": job.id, **top, "file": job.file, "settings": settings}


def _grid_of(jobs: Sequence[ImageJob], folder: Path) -> Image.Image:
    """Draw a grid of images with their labels, each to the right of its source image, if any."""
    import numpy as np

    from triptych.utils.image_grid import labelled_image_grid

    def small(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size, Image.Resampling.LANCZOS)

    first = read_header(folder / jobs[0].file)
    shrink = max(1.0, max(first.size) / MAX_GRID_SIDE)
    size = tuple(max(1, round(side / shrink)) for side in first.size)
    tiles = []
    for job in jobs:
        tile = small(read_image(folder / job.file), size)
        if job.source is not None:
            from triptych.utils.images import open_image

            original = open_image(job.source)
            side = min(original.size)
            left, top = (original.width - side) // 2, (original.height - side) // 2
            original = original.crop((left, top, left + side, top + side))
            tile = np.concatenate([np.array(small(original, size)), np.array(tile)], axis=1)
        tiles.append(np.array(tile))
    scale = max(1, 144 // size[0])
    columns = 4 if jobs[0].source is not None else 8
    labels = [job.label for job in jobs]
    return labelled_image_grid(np.stack(tiles), labels, min(columns, len(jobs)), scale)
