"""Expected images of a benchmark, and problems of the folder with its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.utils import documents
from triptych.utils.documents import parse_json
from triptych.utils.errors import UserError
from triptych.utils.images import open_image
from triptych.utils.listing.folders import list_images
from triptych.utils.text import clean_text, is_blank, numbered_lines

SCORED, MISSING, UNREADABLE, WRONG_SIZE = "scored", "missing", "unreadable", "wrong_size"
EXTRA, JUDGE_FAILED = "extra", "judge_failed"
# in the order of the counts in reports
STATES = (SCORED, MISSING, UNREADABLE, WRONG_SIZE, JUDGE_FAILED, EXTRA)


@dataclass
class ExpectedImage:
    """An expected image, or an unexpected file in the folder."""

    key: str
    prompt: str
    image: str
    """Path in the folder of images."""
    state: str = SCORED
    """SCORED unless the image has a problem; see STATES."""
    note: str = ""
    """Problem of the image, or reason for its score."""
    score: float | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels, known after the image was opened."""

    def item(self, **more: Any) -> dict[str, Any]:
        """Entry of `Report.items`."""
        file = {} if self.state == MISSING else {"image": self.image}
        score = {} if self.score is None else {"score": self.score}
        names = {"key": self.key, "prompt": self.prompt, "state": self.state}
        return names | score | file | {"note": self.note} | more

    def exclude(self, state: str, note: str) -> None:
        """Exclude the image from scoring, for the reason `note`."""
        self.state, self.note, self.score = state, note, None


def find(folder: Path, samples: Iterable[ExpectedImage]) -> None:
    """Mark missing images.

    Raises:
        UserError: the folder does not exist, or has none of the expected images.
    """
    if not folder.is_dir():
        raise UserError(f"the folder of images {folder} does not exist; check the path.")
    expected = [sample for sample in samples if sample.state != EXTRA]
    for sample in expected:
        if not (folder / sample.image).is_file():
            sample.exclude(MISSING, f"there is no {sample.image}")
    if expected and all(sample.state == MISSING for sample in expected):
        raise UserError(
            f"{folder} has none of the {len(expected)} images that are expected, such as "
            f"{expected[0].image}; give the folder that they were generated into."
        )


def images_by_stem(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Images directly in a folder by stem, and a list of further images with equal stems.

    Both are empty if the folder does not exist.
    """
    names: dict[str, str] = {}
    others = []
    for name in list_images(folder) if folder.is_dir() else ():
        if "/" not in name and names.setdefault(Path(name).stem, name) != name:
            others.append(name)
    return names, others


def opened(
    folder: Path, sample: ExpectedImage, fits: Callable[[tuple[int, int]], str] = lambda size: ""
) -> Image.Image | None:
    """Open an expected image as RGB; returns None, and marks it, if that fails.

    Args:
        folder: folder of the images.
        sample: the expected image.
        fits: function that returns the problem of a (width, height), empty if there is none.
    """
    try:
        image = open_image(folder / sample.image)
    except UserError:
        sample.exclude(UNREADABLE, f"{sample.image} is damaged, or is not an image")
        return None
    sample.size = image.size
    if wrong := fits(image.size):
        sample.exclude(WRONG_SIZE, f"{sample.image} {wrong}")
        return None
    return image


def counts(samples: Sequence[ExpectedImage]) -> dict[str, int]:
    """Number of "expected" images, and of images in each of STATES."""
    states = Counter(sample.state for sample in samples)
    expected = len(samples) - states[EXTRA]
    return {"expected": expected} | {state: states[state] for state in STATES}


def sizes(samples: Iterable[ExpectedImage]) -> dict[str, int]:
    """Number of scored images of each size, such as {"1024x1024": 2212}."""
    numbers = Counter(s.size for s in samples if s.state == SCORED and s.size is not None)
    return {f"{width}x{height}": number for (width, height), number in sorted(numbers.items())}


def read_json_lines(path: Path, what: str) -> list[dict[str, Any]]:
    """Read one JSON object per line.

    Args:
        path: the file.
        what: description of the file, for messages, such as "the GenEval prompts".

    Raises:
        UserError: the file does not exist, or a line is not a JSON object.
    """
    return [
        parse_json(line, f"line {number} of {path}, {what},")
        for number, line in numbered_lines(read_text(path, what))
    ]


def read_entries(path: Path, what: str, keys: set[str]) -> list[dict[str, Any]]:
    """Read prompts as JSON lines.

    Args:
        path: the file.
        what: description of the file, for messages, such as "the GenEval prompts".
        keys: required keys of each line, "prompt" among them.

    Raises:
        UserError: the file does not exist, has no prompts, or a line lacks a key or its text.
    """
    entries = read_json_lines(path, what)
    for number, entry in enumerate(entries, 1):
        place = f"prompt {number} of {path}"
        if missing := keys - set(entry):
            raise UserError(f"{place} has no {' nor '.join(sorted(missing))}.")
        entry["prompt"] = prompt_of(entry["prompt"], place)
    if not entries:
        raise UserError(f"{path} holds no prompts.")
    return entries


def prompt_of(entry: Any, place: str) -> str:
    """Clean a prompt for the tokenizer.

    Raises:
        UserError: the prompt is empty or not text; `place` names it.
    """
    if not isinstance(entry, str):
        raise UserError(f"{place} is {entry!r}, which is not text; correct it.")
    text = clean_text(entry, place)
    if is_blank(text):
        raise UserError(f"{place} is empty; say what the image should show.")
    return text


def read_text(path: Path, what: str) -> str:
    """Read a text file.

    Raises:
        UserError: the file does not exist, or is not UTF-8 text.
    """
    try:
        return documents.read_text(path)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
