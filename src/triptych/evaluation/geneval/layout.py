"""Folder layout of GenEval: one numbered folder per prompt, with its metadata and images.

    00000/metadata.jsonl      the first line of the prompt file
    00000/samples/0000.png    its first image, and so on

The original scorer reads this layout. Five-digit file names, as of the original generator, are
accepted too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.evaluation.expected_images import (
    EXTRA,
    ExpectedImage,
    find,
    images_by_stem,
    read_entries,
    read_json_lines,
)
from triptych.utils.atomic_write import write_text
from triptych.utils.errors import UserError

PACKAGED = Path(__file__).parent / "evaluation_metadata.jsonl"
"""The 553 published prompts."""
IMAGES_PER_PROMPT = 4


def read_prompts(path: str | Path = PACKAGED) -> list[dict[str, Any]]:
    """Read the prompts and their checks: "tag", "prompt", "include" and, for some, "exclude".

    Raises:
        UserError: the file does not exist, or an entry lacks a key.
    """
    return read_entries(Path(path), "the GenEval prompts", {"tag", "prompt", "include"})


def prompt_folder(folder: Path, number: int) -> Path:
    """Folder of the images of prompt `number`, counted from 0."""
    return folder / f"{number:05d}"


def sample_path(folder: Path, number: int, sample: int) -> Path:
    """Path of image `sample` of prompt `number`, both counted from 0."""
    return prompt_folder(folder, number) / "samples" / f"{sample:04d}.png"


def write_metadata(folder: Path, number: int, entry: dict[str, Any]) -> None:
    """Write the metadata file of a prompt, which the original scorer reads."""
    write_text(prompt_folder(folder, number) / "metadata.jsonl", json.dumps(entry) + "\n")


def read_folder(
    folder: Path, prompts: Sequence[dict[str, Any]], images_per_prompt: int
) -> list[list[ExpectedImage]]:
    """Expected images of each prompt, then unexpected ones in the folder.

    Raises:
        UserError: the folder does not exist, has none of the expected images, or was generated
            from other prompts.
    """
    samples = [
        _samples(folder, number, entry["prompt"], images_per_prompt)
        for number, entry in enumerate(prompts)
    ]
    find(folder, (sample for some in samples for sample in some))
    for number, entry in enumerate(prompts):
        _check_metadata(prompt_folder(folder, number) / "metadata.jsonl", number, entry)
    return samples


def _samples(folder: Path, number: int, prompt: str, images: int) -> list[ExpectedImage]:
    inside = prompt_folder(folder, number) / "samples"
    by_index: dict[int, Path] = {}
    files, others = images_by_stem(inside)
    extra = [inside / name for name in others]
    for stem, name in files.items():
        index = int(stem) if re.fullmatch(r"[0-9]+", stem) else None
        if index is None or index >= images or index in by_index:
            extra.append(inside / name)
        else:
            by_index[index] = inside / name
    paths = [by_index.get(n, sample_path(folder, number, n)) for n in range(images)]
    keys = [f"{number:05d}/{n}" for n in range(images)] + [f"{number:05d}/{p.name}" for p in extra]
    samples = [
        ExpectedImage(key, prompt, path.relative_to(folder).as_posix())
        for key, path in zip(keys, [*paths, *extra], strict=True)
    ]
    for sample in samples[images:]:
        sample.exclude(EXTRA, f"{sample.image} is beyond the {images} images of its prompt")
    return samples


def _check_metadata(path: Path, number: int, entry: dict[str, Any]) -> None:
    if not path.exists():  # optional: the prompt file has the same content
        return
    written = [*read_json_lines(path, "the metadata of a prompt"), {}][0]
    if written.get("prompt") != entry["prompt"]:
        raise UserError(
            f"{path} says {written.get('prompt')!r}, but prompt {number} is {entry['prompt']!r}; "
            "give the prompt file that the images were made from."
        )
