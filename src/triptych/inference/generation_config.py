"""What a call of the pipeline is asked for: checked, and laid out as single pictures."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from triptych.interfaces import Sampling
from triptych.sampler import require_interval, require_sampler, require_steps
from triptych.utils.errors import UserError
from triptych.utils.limits import (
    ALL_IMAGES,
    BATCH,
    IMAGES,
    PROBABILITY,
    SCALE,
    SEED,
    TEMPERATURE,
    TOKENS,
)


@dataclass
class Settings:
    """How pictures are made; None is the model's own."""

    steps: int | None
    guidance: float | None
    decoder_steps: int | None
    decoder_guidance: float | None
    negative: str | None
    batch_size: int
    sampler: str | None
    decoder_sampler: str | None
    guidance_interval: tuple[float, float] | None

    def __post_init__(self) -> None:
        check_sampling(self.steps, self.sampler)
        check_sampling(self.decoder_steps, self.decoder_sampler)
        require_interval(self.guidance_interval)
        for name in ("guidance", "decoder_guidance"):
            if (value := getattr(self, name)) is not None:
                SCALE.require(value, name)
        BATCH.require(self.batch_size, "batch_size")


def check_sampling(steps: int | None, sampler: str | None) -> None:
    """Refuse what no sampler takes, before any work; None is the model's own.

    Raises:
        UserError: there are no steps, or there is no such sampler.
    """
    if steps is not None:
        require_steps(steps)
    if sampler is not None:
        require_sampler(sampler)


@dataclass
class Wanted:
    """One picture of a call."""

    prompt: int
    """Number of its prompt."""
    text: str
    seed: int


def wanted_pictures(
    texts: Sequence[str], images_per_prompt: int, seeds: int | Sequence[int] | None
) -> list[Wanted]:
    """One a picture; `seeds` are theirs, the first one's, or None for random ones.

    Raises:
        UserError: nothing is asked for, or the seeds are not as many as the pictures.
    """
    if not texts:
        raise UserError("there is no prompt; give at least one.")
    IMAGES.require(images_per_prompt, "images_per_prompt")
    number = len(texts) * images_per_prompt
    ALL_IMAGES.require(number, "the number of pictures of this call")
    if seeds is None:
        seeds = [secrets.randbits(32) for _ in range(number)]
    seeds = _each(seeds, number)
    if len(seeds) != number:
        raise UserError(f"{len(seeds)} seeds for {number} pictures; give one each, or the first.")
    return [
        Wanted(n // images_per_prompt, texts[n // images_per_prompt], seed)
        for n, seed in enumerate(seeds)
    ]


def conversation_seeds(seeds: int | Sequence[int] | None, number: int) -> Sequence[int]:
    """One a conversation; as `wanted_pictures` takes them.

    Raises:
        UserError: there is no conversation, or the seeds are not as many.
    """
    if not number:
        raise UserError("there is no conversation; give at least one.")
    if seeds is None:
        return [secrets.randbits(32) for _ in range(number)]
    seeds = _each(seeds, number)
    if len(seeds) != number:
        raise UserError(f"{len(seeds)} seeds for {number} conversations; give one each.")
    return seeds


def _each(seeds: int | Sequence[int], number: int) -> Sequence[int]:
    """The seeds, or `number` of them from the first on."""
    if isinstance(seeds, Sequence):
        for seed in seeds:
            SEED.require(seed, "seed")
        return seeds
    SEED.require(seeds, "seed")
    SEED.require(seeds + number - 1, "the last seed")
    return range(seeds, seeds + number)


def token_sampling(
    max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int]
) -> Sampling:
    """How the next token is chosen, a seed for each conversation.

    Raises:
        UserError: a value is out of its range.
    """
    TOKENS.require(max_new_tokens, "max_new_tokens")
    TEMPERATURE.require(temperature, "temperature")
    PROBABILITY.require(top_p, "top_p")
    return Sampling(temperature, top_p, seeds)


def chunks(wanted: list[Wanted], size: int) -> Iterator[list[Wanted]]:
    """Batches of `size` at most."""
    return (wanted[at : at + size] for at in range(0, len(wanted), size))


def ranges(parts: list[list[Wanted]]) -> Iterator[range]:
    """Which of the call's pictures each part is."""
    ends = list(accumulate(map(len, parts)))
    return (range(end - len(part), end) for part, end in zip(parts, ends, strict=True))
