"""Captions without images, for rewards: a file of prompts, and captions of the shapes world."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from triptych.data_modules.sources.base import CAPTION_KEYS, BadSample, DataSource, ImageRole
from triptych.shapes_world.captions import TASKS, UNSEEN_TASKS, Request, sample
from triptych.shapes_world.shards import make_request
from triptych.utils.errors import UserError
from triptych.utils.prompt_files import read_entries, read_input

EVALUATED = 600
"""Number of captions of the unseen combinations that are kept for evaluation."""
STREAM = 1000
"""Random stream of `ShapesPrompts`, beside those of the splits."""


class _Prompts(DataSource):
    """Samples that are a caption alone."""

    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        raise BadSample(self.key(number), "no image", "this data set is of prompts alone")

    def has_image(self, number: int, role: ImageRole) -> bool:
        return False


class PromptFile(_Prompts):
    """A file of prompts: one a line, or JSON lines with "prompt" (or "caption") and maybe "key".

    Args:
        path: .txt, .jsonl, .ndjson or .json file, held in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = Path(path), str(path)
        self._rows: list[tuple[str, str, dict]] = []

    def open(self) -> PromptFile:
        """Read the file.

        Raises:
            UserError: it does not exist, holds no prompt, or an entry has none.
        """
        if self._rows:
            return self
        for place, entry in read_entries(str(self.path), read_input(str(self.path))):
            fields = {"prompt": entry} if isinstance(entry, str) else entry
            found = [fields[key] for key in ("prompt", *CAPTION_KEYS) if key in fields]
            if not found or not isinstance(found[0], str) or not found[0].strip():
                raise UserError(f'{place} has no text "prompt"; give it one.')
            self._rows.append((str(fields.get("key", len(self._rows))), found[0], fields))
        if not self._rows:
            raise UserError(f"{self.path} holds no prompt; give one a line.")
        return self

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, number: int) -> str:
        return self._rows[number][0]

    def caption(self, number: int) -> str:
        return self._rows[number][1]

    def metadata(self, number: int) -> dict:
        """All fields of a JSON line."""
        return self._rows[number][2]

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray:
        return np.array([len(self._rows[n][1].encode()) for n in numbers], np.int64)


PROMPT_TASKS = {"train": TASKS, "pairs": ("two_object",), "unseen": UNSEEN_TASKS}
"""Split of `ShapesPrompts` -> tasks of its captions, in turn."""


class ShapesPrompts(_Prompts):
    """Captions of the shapes world, each drawn when it is read; none is one of evaluation.

    Args:
        split: "train"; "pairs": those of train that name two shapes and their sizes; or "unseen":
            captions of combinations of colour and kind of which the training data has no image. Of
            these the meanings of the first `EVALUATED` of `ShapeEval` are left out.
        number: number of captions.
        seed: random seed of the captions.
    """

    def __init__(
        self,
        split: Literal["train", "pairs", "unseen"] = "train",
        number: int = 20000,
        seed: int = 0,
    ) -> None:
        if split not in PROMPT_TASKS:
            raise UserError(
                f"ShapesPrompts has the splits {', '.join(PROMPT_TASKS)}, and none is {split!r}."
            )
        self.split, self.number, self.seed = split, number, seed
        self.name = f"captions of the shapes world, {split}"

    def open(self) -> ShapesPrompts:
        return self

    def __len__(self) -> int:
        return self.number

    def key(self, number: int) -> str:
        return f"{self.split}-prompt{number:08d}"

    def caption(self, number: int) -> str:
        tasks = PROMPT_TASKS[self.split]
        rng = np.random.default_rng([self.seed, STREAM, len(tasks), number])
        split = "unseen" if self.split == "unseen" else "train"
        while True:
            caption, request, _ = sample(rng, tasks[number % len(tasks)], split)
            if self.split == "pairs" and request.wanted[0].size is None:
                continue
            if self.split != "unseen" or request not in _evaluated():
                return caption


@lru_cache(maxsize=1)
def _evaluated() -> frozenset[Request]:
    """Meanings of the captions of unseen combinations that are kept for evaluation."""
    return frozenset(make_request("unseen", index, seed=0) for index in range(EVALUATED))
