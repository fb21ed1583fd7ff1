"""A plain folder of images with captions.

Either KEY.txt or KEY.json beside each image, in sub-folders too (see
`triptych.utils.listing.folders`), or one table in the layout of Hugging Face's ImageFolder:
metadata.csv, metadata.jsonl or captions.jsonl, with `file_name` and `text`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.sources.base import ImageRole
from triptych.data_modules.sources.members import MemberSource
from triptych.data_modules.sources.safe_read import MAX_IMAGE_BYTES, read_inside
from triptych.utils.captions import MAX_TEXT_BYTES, text_bytes
from triptych.utils.errors import UserError
from triptych.utils.listing.folders import captioned, counted
from triptych.utils.listing.names import IMAGE_KINDS
from triptych.utils.listing.table import TABLES, caption_in, captioned_rows, find_table

log = logging.getLogger(__name__)


class ImageFolder(MemberSource):
    """Images with captions, in the order of their keys or of the table's rows.

    Keys are the paths of the images in the folder, without suffix. The names of all images, and
    the table, are held in memory: for more than a few million images use shards.

    Args:
        path: folder of images.
        max_image_bytes: size limit of images; a larger one is a bad sample, and is not read.
        max_text_bytes: size limit of captions and JSON.

    Raises:
        UserError: the folder does not exist, or has no image with a caption.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        self.path, self.name = Path(path), str(path)
        self.max_image_bytes, self.max_text_bytes = max_image_bytes, max_text_bytes
        self._keys: list[str] = []
        self._files: list[dict[str, str]] = []  # role -> path in the folder
        self._rows: list[dict] | None = None  # of the table
        self._sizes = np.zeros(0, np.int64)

    def open(self) -> ImageFolder:
        if self._keys:
            return self
        if not self.path.is_dir():
            raise UserError(f"the folder of images {self.path} does not exist.")
        table = find_table(self.path)
        excluded = self._take_files() if table is None else self._take_table(table)
        counts = counted(excluded)
        if not self._keys:
            raise UserError(
                f"the folder {self.path} holds no image ({', '.join(IMAGE_KINDS)}) with a "
                f"caption{counts and f' ({counts})'}: put KEY.txt beside KEY.jpg, or name both in "
                f"{TABLES[0]} (file_name,text)."
            )
        if counts:
            log.warning("%s: left out: %s", self.path, counts)
        return self

    def _take_files(self) -> Counter[str]:
        samples, excluded = captioned(self.path)
        self._keys = [sample.key for sample in samples]
        self._files = [
            {role: name for role, (name, _) in sample.files.items()} for sample in samples
        ]
        captions = [sample.files.get("txt") or sample.files["json"] for sample in samples]
        self._sizes = np.array([size for _, size in captions], np.int64)
        return excluded

    def _take_table(self, path: Path) -> Counter[str]:
        rows, excluded = captioned_rows(path)
        stems = [os.path.splitext(row["file_name"])[0] for row in rows]
        counts = Counter(stems)
        self._keys = [
            stem if counts[stem] == 1 else row["file_name"]
            for stem, row in zip(stems, rows, strict=True)
        ]
        self._files = [{"image": row["file_name"]} for row in rows]
        self._rows = rows
        self._sizes = np.array([text_bytes(caption_in(row)) for row in rows], np.int64)
        return excluded

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, number: int) -> str:
        return self._keys[number]

    def captions(self, number: int) -> list[str]:
        if self._rows is not None:
            return captions_of(caption_in(self._rows[number]), self.key(number))
        return super().captions(number)

    def metadata(self, number: int) -> dict:
        """The columns of the table, or KEY.json."""
        return super().metadata(number) if self._rows is None else self._rows[number]

    def has_image(self, number: int, role: ImageRole) -> bool:
        return role in self._files[number]

    def _read(self, number: int, role: str, max_bytes: int) -> bytes | None:
        name = self._files[number].get(role)
        label = {"txt": "caption", "json": "its .json"}.get(role, role)
        return name and read_inside(self.path, name, self.key(number), label, max_bytes)

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n], caption lengths in bytes."""
        return self._sizes[np.asarray(numbers)]
