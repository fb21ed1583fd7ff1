"""Downloaded prompts of WISE, and the folder layout of their images.

1.png ... 1000.png    one image per prompt, named by its number
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.evaluation.expected_images import (
    EXTRA,
    ExpectedImage,
    find,
    images_by_stem,
    prompt_of,
)
from triptych.evaluation.wise.protocols import LEGACY, ScoringProtocol
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError

LAST = 1000
FIELDS = ("prompt_id", "Prompt", "Explanation")


@dataclass(frozen=True)
class WisePrompt:
    """A prompt and its meaning."""

    number: int
    text: str
    explanation: str


def read_prompts(paths: Sequence[str | Path], protocol: ScoringProtocol) -> dict[int, WisePrompt]:
    """Read prompts from files of the WISE repository, by number.

    Raises:
        UserError: a file is missing, malformed or of the other protocol, or two prompts have the
            same number.
    """
    by_number: dict[int, WisePrompt] = {}
    for path in map(Path, paths):
        if protocol is LEGACY and "verified" in "/".join(path.absolute().parts[-2:]).lower():
            raise UserError(
                f"{path} is of the verified protocol, by its name, whose numbers do not compare "
                "with the legacy ones; choose that protocol, or the files of the legacy one."
            )
        for prompt in _read(path):
            if prompt.number in by_number:
                raise UserError(f"{path} has a second prompt of number {prompt.number}.")
            by_number[prompt.number] = prompt
    if not by_number:
        raise UserError("there are no WISE prompts; name the files that you downloaded.")
    return dict(sorted(by_number.items()))


def image_path(folder: Path, number: int) -> Path:
    """Path of the image of a prompt."""
    return folder / f"{number}.png"


def read_folder(folder: Path, prompts: Mapping[int, WisePrompt]) -> list[ExpectedImage]:
    """Expected images, one per prompt, then unexpected ones in the folder.

    Raises:
        UserError: the folder does not exist or has none of the expected images.
    """
    files, extra = images_by_stem(folder)
    samples = []
    for prompt in prompts.values():
        name = files.pop(str(prompt.number), image_path(folder, prompt.number).name)
        samples.append(ExpectedImage(str(prompt.number), prompt.text, name))
    for name in sorted([*files.values(), *extra]):
        samples.append(ExpectedImage(name, "", name))
        samples[-1].exclude(EXTRA, f"{name} belongs to no prompt, or to one that has an image")
    find(folder, samples)
    return samples


def _read(path: Path) -> list[WisePrompt]:
    entries = read_json(path, list)
    return [_prompt(path, number, entry) for number, entry in enumerate(entries, 1)]


def _prompt(path: Path, number: int, entry: object) -> WisePrompt:
    entry = entry if isinstance(entry, dict) else {}
    if missing := [name for name in FIELDS if name not in entry]:
        raise UserError(f"prompt {number} of {path} has no {' nor '.join(missing)}.")
    prompt_id, *texts = (entry[name] for name in FIELDS)
    if not isinstance(prompt_id, int) or not 1 <= prompt_id <= LAST:
        raise UserError(f"prompt {number} of {path} has the number {prompt_id!r}, not 1 to {LAST}.")
    text, explanation = texts
    return WisePrompt(prompt_id, prompt_of(text, f"prompt {number} of {path}"), str(explanation))
