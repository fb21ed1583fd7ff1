"""Prompt and seed of each image of a call, and their batches."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from triptych.utils.errors import UserError
from triptych.utils.limits import ALL_IMAGES, IMAGES, SEED

Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class ImageRequest:
    """An image of a call."""

    number: int
    """Index of its prompt in the call."""
    prompt: str
    seed: int
    rank: dict[str, Any] = field(default_factory=dict)
    """Score and ranker of the best of several candidates, for its metadata."""

    def metadata(self, common: dict[str, Any]) -> dict[str, Any]:
        """Metadata of its image; `common` is that of all images of the call."""
        prompt = {"prompt": self.prompt} if self.prompt else {}
        return prompt | {"seed": self.seed} | common | self.rank


def image_requests(
    prompts: Sequence[str], num_images_per_prompt: int, seed: Seeds, generator: Generators = None
) -> list[ImageRequest]:
    """Expand prompts into one request per image; images of one prompt are adjacent.

    Args:
        prompts: prompts of the call.
        num_images_per_prompt: number of images of each prompt.
        seed: seed of the first image, each next one has one more; or a list of seeds; None draws
            them.
        generator: generator that draws the seeds instead, or a list of one per image.

    Raises:
        UserError: there is no prompt, or the number of seeds or generators is not that of images.
    """
    if not prompts:
        raise UserError("there is no prompt; give at least one.")
    IMAGES.require(num_images_per_prompt, "num_images_per_prompt")
    number = len(prompts) * num_images_per_prompt
    ALL_IMAGES.require(number, "the number of images of this call")
    if generator is not None:
        if seed is not None:
            raise UserError("seed and generator both decide the noise; give one of them.")
        seed = drawn_seeds(generator, number)
    seeds = seeds_for(seed, number, "images")
    return [
        ImageRequest(n // num_images_per_prompt, prompts[n // num_images_per_prompt], seed)
        for n, seed in enumerate(seeds)
    ]


def drawn_seeds(generator: Generators, number: int) -> list[int]:
    """Draw `number` seeds from a generator, or one from each generator of a list.

    Raises:
        UserError: the list has another length.
    """
    if isinstance(generator, torch.Generator):
        return _draw(generator, number)
    if len(generator) != number:
        raise UserError(f"{len(generator)} generators for {number} images; give one each, or one.")
    return [_draw(each, 1)[0] for each in generator]


def _draw(generator: torch.Generator, number: int) -> list[int]:
    options = {"generator": generator, "device": generator.device}
    return torch.randint(0, 2**32, (number,), **options).tolist()


def seeds_for(seed: Seeds, number: int, things: str) -> Sequence[int]:
    """Seeds of `number` items, which `things` names in messages.

    Raises:
        UserError: `number` is 0, a seed is out of range, or a list has another length.
    """
    if not number:
        raise UserError(f"there are no {things}; give at least one.")
    if seed is None:
        return [secrets.randbits(32) for _ in range(number)]
    if not isinstance(seed, Sequence):
        SEED.require(seed, "seed")
        SEED.require(seed + number - 1, "the last seed")
        return range(seed, seed + number)
    for each in seed:
        SEED.require(each, "seed")
    if len(seed) != number:
        raise UserError(f"{len(seed)} seeds for {number} {things}; give one each, or the first.")
    return seed


def chunks(requests: list[ImageRequest], size: int) -> Iterator[list[ImageRequest]]:
    """Yield batches of at most `size` requests."""
    return (requests[at : at + size] for at in range(0, len(requests), size))


def ranges(batches: list[list[ImageRequest]]) -> Iterator[range]:
    """Indices in the call of the images of each batch."""
    ends = list(accumulate(map(len, batches)))
    return (range(end - len(batch), end) for batch, end in zip(batches, ends, strict=True))
