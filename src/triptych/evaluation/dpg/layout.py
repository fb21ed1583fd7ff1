"""Folder layout of DPG-Bench: one image per prompt, a grid of several tiles.

partiprompts32.png    2x2 tiles of one size, named after the prompt's text file
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.expected_images import (
    EXTRA,
    ExpectedImage,
    find,
    images_by_stem,
    read_entries,
)
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import read_header

PACKAGED = Path(__file__).parent / "prompts.jsonl"
"""The 1,065 published prompts."""
GRID = 2
"""Number of tiles per side."""


def read_prompts(path: str | Path = PACKAGED) -> list[dict[str, Any]]:
    """Read prompts with the keys "item_id" and "prompt".

    Raises:
        UserError: the file does not exist, or an entry lacks a key.
    """
    return read_entries(Path(path), "the DPG prompts", {"item_id", "prompt"})


def grid_path(folder: Path, item_id: str) -> Path:
    """Path of the image of a prompt."""
    return folder / f"{item_id}.png"


def join_grid(tiles: Sequence[Image.Image], grid: int = GRID) -> Image.Image:
    """Join images of one size to a grid, row by row.

    Raises:
        UserError: the number of images is not `grid` squared, or their sizes differ.
    """
    width, height = tiles[0].size
    if len(tiles) != grid**2 or any(tile.size != (width, height) for tile in tiles):
        raise UserError(f"a grid of {grid}x{grid} needs {grid**2} images of one size.")
    joined = Image.new("RGB", (grid * width, grid * height))
    for number, tile in enumerate(tiles):
        joined.paste(tile, (number % grid * width, number // grid * height))
    return joined


def split_grid(joined: Image.Image, grid: int = GRID) -> list[Image.Image]:
    """Split a grid into its tiles, row by row."""
    width, height = (side // grid for side in joined.size)
    places = [(column * width, row * height) for row in range(grid) for column in range(grid)]
    return [joined.crop((left, top, left + width, top + height)) for left, top in places]


def read_folder(folder: Path, prompts: Sequence[dict[str, Any]]) -> list[ExpectedImage]:
    """Expected images, one per prompt, then unexpected ones in the folder.

    Raises:
        UserError: the folder does not exist or has none of the expected images.
    """
    files, extra = images_by_stem(folder)
    texts = {str(entry["item_id"]): entry["prompt"] for entry in prompts}
    samples = [
        ExpectedImage(item_id, prompt, files.get(item_id, grid_path(folder, item_id).name))
        for item_id, prompt in texts.items()
    ]
    extra += [name for stem, name in files.items() if stem not in texts]
    for name in sorted(extra):
        sample = ExpectedImage(name, "", name)
        sample.exclude(EXTRA, f"{name} belongs to no prompt, or to one that has an image")
        samples.append(sample)
    find(folder, samples)
    return samples


def tile_size(folder: Path, samples: Sequence[ExpectedImage], grid: int = GRID) -> int:
    """The side of the tiles of most images, read from the files' first bytes.

    Raises:
        UserError: most images are not squares of `grid` times `grid` tiles.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for sample in samples:
        try:
            sizes[read_header(folder / sample.image).size] += 1
        except ImageError:  # missing or torn, which is counted when it is opened whole
            continue
    if not sizes:
        return 0
    (width, height), _ = sizes.most_common(1)[0]
    if width != height or width % grid:
        raise UserError(
            f"most images of {folder} have {width}x{height} pixels, which are no {grid}x{grid} "
            "square tiles; give the size of a tile, or the grid that they are."
        )
    return width // grid
