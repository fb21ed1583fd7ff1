"""Expected images of a benchmark, and the problems of the folder that should hold them."""

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
# In the order in which reports count them.
STATES = (SCORED, MISSING, UNREADABLE, WRONG_SIZE, JUDGE_FAILED, EXTRA)


@dataclass
class ExpectedImage:
    """An expected image, or an unexpected file in the folder."""

    key: str
    prompt: str
    image: str
    """Path in the folder of images."""
    state: str = SCORED
    """SCORED until something is found wrong with it; see STATES."""
    note: str = ""
    """Problem of the image, or reason for its score."""
    score: float | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels, once it was opened."""

    def item(self, **more: Any) -> dict[str, Any]:
        """Entry of `Report.items`."""
        there = {} if self.state == MISSING else {"image": self.image}
        score = {} if self.score is None else {"score": self.score}
        names = {"key": self.key, "prompt": self.prompt, "state": self.state}
        return names | score | there | {"note": self.note} | more

    def leave_out(self, state: str, note: str) -> None:
        """It is not scored, and this is why."""
        self.state, self.note, self.score = state, note, None


def find(folder: Path, samples: Iterable[ExpectedImage]) -> None:
    """Mark the missing images.

    Raises:
        UserError: the folder does not exist, or none of them is in it.
    """
    if not folder.is_dir():
        raise UserError(f"the folder of images {folder} does not exist; check the path.")
    asked = [sample for sample in samples if sample.state != EXTRA]
    for sample in asked:
        if not (folder / sample.image).is_file():
            sample.leave_out(MISSING, f"there is no {sample.image}")
    if asked and all(sample.state == MISSING for sample in asked):
        raise UserError(
            f"{folder} has none of the {len(asked)} images that are asked for, such as "
            f"{asked[0].image}; give the folder that they were made in."
        )


def images_by_stem(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Map stems to names of images directly in a folder; also list further ones of equal stems.

    Empty if the folder does not exist.
    """
    found: dict[str, str] = {}
    others = []
    for name in list_images(folder) if folder.is_dir() else ():
        if "/" not in name and found.setdefault(Path(name).stem, name) != name:
            others.append(name)
    return found, others


def opened(
    folder: Path, sample: ExpectedImage, fits: Callable[[tuple[int, int]], str] = lambda size: ""
) -> Image.Image | None:
    """Its image in RGB; or None, and it is marked.

    Args:
        fits: function that returns the problem of a (width, height), nothing if it is right.
    """
    try:
        image = open_image(folder / sample.image)
    except UserError:
        sample.leave_out(UNREADABLE, f"{sample.image} is torn, or is no image")
        return None
    sample.size = image.size
    if wrong := fits(image.size):
        sample.leave_out(WRONG_SIZE, f"{sample.image} {wrong}")
        return None
    return image


def counts(samples: Sequence[ExpectedImage]) -> dict[str, int]:
    """Number of "asked" images, and of those in each of STATES."""
    found = Counter(sample.state for sample in samples)
    asked = len(samples) - found[EXTRA]
    return {"asked": asked} | {state: found[state] for state in STATES}


def sizes(samples: Iterable[ExpectedImage]) -> dict[str, int]:
    """Number of scored images of each size, such as {"1024x1024": 2212}."""
    found = Counter(s.size for s in samples if s.state == SCORED and s.size is not None)
    return {f"{width}x{height}": number for (width, height), number in sorted(found.items())}


def read_json_lines(path: Path, what: str) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Args:
        what: description of the file, for messages, such as "the GenEval prompts".

    Raises:
        UserError: the file does not exist, or a line is not a JSON object.
    """
    return [
        parse_json(line, f"line {number} of {path}, {what},")
        for number, line in numbered_lines(read_text(path, what))
    ]


def read_entries(path: Path, what: str, keys: set[str]) -> list[dict[str, Any]]:
    """Prompts as JSON lines, each with `keys`, "prompt" among them.

    Args:
        what: name of the file's content for messages, such as "the GenEval prompts".

    Raises:
        UserError: there is no such file, it holds no prompts, or one lacks a key or its text.
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
    """A prompt of a file of prompts, as a tokenizer gets it.

    Raises:
        UserError: it is none that a model can be given; `place` names it.
    """
    if not isinstance(entry, str):
        raise UserError(f"{place} is {entry!r}, which is no text; correct it.")
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
