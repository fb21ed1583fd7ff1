"""What a call of the pipeline is asked for: checked, and laid out as single pictures."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from triptych.contracts import Sampling, UserError
from triptych.sampler import require_interval
from triptych.solvers import require_sampler, require_steps


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
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; make at least 1 picture at once.")


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
    if images_per_prompt < 1:
        raise UserError(f"images_per_prompt is {images_per_prompt}; ask for at least 1.")
    number = len(texts) * images_per_prompt
    if seeds is None:
        seeds = [secrets.randbits(32) for _ in range(number)]
    elif isinstance(seeds, int):
        seeds = range(seeds, seeds + number)
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
    if isinstance(seeds, int):
        return range(seeds, seeds + number)
    if len(seeds) != number:
        raise UserError(f"{len(seeds)} seeds for {number} conversations; give one each.")
    return seeds


def token_sampling(
    max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int]
) -> Sampling:
    """How the next token is chosen, a seed for each conversation.

    Raises:
        UserError: a value is out of its range.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; allow at least 1.")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}; give 0 (the likeliest token) or more.")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; give a probability above 0, at most 1.")
    return Sampling(temperature, top_p, seeds)


def chunks(wanted: list[Wanted], size: int) -> Iterator[list[Wanted]]:
    """Batches of `size` at most."""
    return (wanted[at : at + size] for at in range(0, len(wanted), size))


def ranges(parts: list[list[Wanted]]) -> Iterator[range]:
    """Which of the call's pictures each part is."""
    ends = list(accumulate(map(len, parts)))
    return (range(end - len(part), end) for part, end in zip(parts, ends, strict=True))
