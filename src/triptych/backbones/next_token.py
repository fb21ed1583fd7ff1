"""How transformers' `generate` is told to draw tokens by seed, and watched while it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from triptych.contracts import Sampling
from triptych.randomness import mix


def choice(sampling: Sampling) -> LogitsProcessorList:
    """What greedy decoding does to scores to draw as `sampling` says; nothing at temperature 0."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    steps = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(float(sampling.top_p)))
    return LogitsProcessorList([*steps, Gumbel(sampling.seeds)])


class Gumbel(LogitsProcessor):
    """Adds noise by which the highest score is a draw from the scores' softmax (Gumbel 1954).

    transformers draws from the global generator, all rows together; here each row has its own.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        # On the CPU whatever the device: the same draws on every machine.
        self.generators = [torch.Generator().manual_seed(mix(seed)) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waits = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators]
        return scores - torch.stack(waits).log().to(scores.device)


class Watch(StoppingCriteria):
    """Tells of the tokens [B] of every step; what it is told ends rows."""

    def __init__(self, on_tokens: Callable[[list[int]], list[bool]]) -> None:
        self.on_tokens = on_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        enough = self.on_tokens(input_ids[:, -1].tolist())
        return torch.tensor(enough, device=input_ids.device)
