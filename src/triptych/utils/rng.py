"""Random draws as pure functions of (seed, named random stream, sample number).

No global generator is used: resuming a run, or changing the number of workers, ranks or batches,
changes no draw. A random stream is named by its use ("noise", "time", "drop"); draws of different
streams are independent.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """A 63-bit seed from integers, by splitmix64 (Steele et al. 2014): neighbours decorrelate."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def _generators(seed: int, stream: str, samples: Tensor | Iterable[int]):
    numbers = samples.tolist() if isinstance(samples, Tensor) else list(samples)
    word = zlib.crc32(stream.encode())
    for number in numbers:
        # always on the CPU: the same numbers on every machine
        yield torch.Generator().manual_seed(mix(seed, word, number))


def normal(shape: tuple[int, ...], seed: int, stream: str, samples, device=None) -> Tensor:
    """Standard normal [len(samples), *shape], float32; row i depends only on samples[i]."""
    generators = _generators(seed, stream, samples)
    rows = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(device, non_blocking=True)


def uniform(seed: int, stream: str, samples, device=None) -> Tensor:
    """Uniform in [0,1), [len(samples)], float32; entry i depends only on samples[i]."""
    generators = _generators(seed, stream, samples)
    rows = [torch.rand((), generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(device, non_blocking=True)


@dataclass(frozen=True)
class Draw:
    """A random draw for the samples of a batch: float32 [B*repeats, *shape].

    Args:
        stream: name of the random stream.
        shape: shape of one row.
        distribution: "normal" (standard) or "uniform" in [0,1).
        repeats: rows of each sample.
    """

    stream: str
    shape: tuple[int, ...] = ()
    distribution: Literal["normal", "uniform"] = "uniform"
    repeats: int = 1

    def __call__(self, seed: int, sample_ids: Tensor) -> Tensor:
        """Draw for `sample_ids` [B], on the CPU."""
        rows = (sample_ids[:, None] * self.repeats + torch.arange(self.repeats)).flatten()
        if self.distribution == "normal":
            return normal(self.shape, seed, self.stream, rows)
        return uniform(seed, self.stream, rows)
