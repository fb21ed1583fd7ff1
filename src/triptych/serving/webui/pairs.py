"""Pairs of images from votes: both images of each decided vote, made again and written as shards.

Votes name prompt, seed and settings of their images, which make the same images again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triptych.inference.generation_config import SETTINGS
from triptych.utils.atomic_write import replacing
from triptych.utils.errors import UserError
from triptych.utils.shard_writing import write_samples


@dataclass(frozen=True)
class VotedImage:
    """An image of a vote by its model and settings."""

    prompt: str
    seed: int
    model: str
    settings: dict[str, Any]
    file: str
    """Name of its file while pairs are made."""
    weights: str | None = None
    """Hash of the weights that made it, if the vote says so."""


@dataclass(frozen=True)
class VotedPair:
    """The two images of a vote for one of them."""

    chosen: VotedImage
    rejected: VotedImage


def pairs_of(votes: Iterable[dict[str, Any]], criterion: str) -> list[VotedPair]:
    """The pairs of votes for either side by one criterion; a tie prefers none.

    Raises:
        UserError: a vote lacks what makes its images again.
    """
    pairs = []
    for vote in votes:
        try:
            if vote["criterion"] == criterion and vote["vote"] in ("a", "b"):
                other = "b" if vote["vote"] == "a" else "a"
                pairs.append(VotedPair(_image(vote, vote["vote"]), _image(vote, other)))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the vote {str(vote['trial'])[:40]!r} does not say how its images were made "
                f"({error}); delete its line."
            ) from error
    return pairs


def _image(vote: dict[str, Any], side: Literal["a", "b"]) -> VotedImage:
    made = vote[side]
    settings = {name: made[name] for name in SETTINGS if made.get(name) is not None}
    trial = hashlib.sha256(vote["trial"].encode()).hexdigest()[:16]  # safe as a name
    file = f"{trial}-{side}.png"
    shown = vote["prompt"], vote["seed"], made["model"]
    return VotedImage(*shown, settings, file, made.get("weights"))


def write_pairs(
    pairs: list[VotedPair],
    folder: Path,
    load: Callable[[str], Any],
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write FOLDER/pairs-00000.tar and so on: KEY.png, KEY.rejected.png, KEY.txt and KEY.json.

    Args:
        pairs: the pairs, of one or several models.
        folder: output folder, which must be missing or empty; FOLDER.images has the images that
            are made so far, from which an interrupted call goes on.
        load: function from a model's name to its pipeline; one is held at a time.
        progress: callback for the number of images made so far.

    Raises:
        UserError: there are no pairs, the folder holds something, a model cannot be loaded, or its
            weights are not those that were voted on.
    """
    if not pairs:
        raise UserError("no vote prefers an image by this criterion; vote first: triptych app.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder for the pairs.")
    made = folder.with_name(f"{folder.name}.images")
    images = [image for pair in pairs for image in (pair.chosen, pair.rejected)]
    pipe, loaded = None, None
    for number, image in enumerate(sorted(images, key=lambda each: each.model), 1):
        if not (made / image.file).exists():
            if image.model != loaded:
                pipe = None  # two models may not fit into memory
                pipe, loaded = load(image.model), image.model
            output = pipe(image.prompt, seed=image.seed, **image.settings)
            drawn = output.images[0]
            if image.weights and output.metadata[0].get("weights") != image.weights:
                raise UserError(
                    f"{image.model} has other weights now than when it was voted on; name those "
                    "of then: --model NAME=SOURCE."
                )
            with replacing(made / image.file, durable=False) as path:
                drawn.save(path, "PNG")
        if progress:
            progress(number)
    samples = (_sample(number, pair, made) for number, pair in enumerate(pairs))
    write_samples(folder, "pairs", samples)
    shutil.rmtree(made)
    return folder


def _sample(number: int, pair: VotedPair, made: Path) -> dict[str, Any]:
    facts = {"rejected": "rejected.png", "seed": pair.chosen.seed}
    facts |= {"models": [pair.chosen.model, pair.rejected.model]}
    return {
        "__key__": f"{number:08d}",
        "png": (made / pair.chosen.file).read_bytes(),
        "rejected.png": (made / pair.rejected.file).read_bytes(),
        "txt": pair.chosen.prompt.encode(),
        "json": json.dumps(facts).encode(),
    }
