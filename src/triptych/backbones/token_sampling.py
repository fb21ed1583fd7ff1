"""Token sampling by seed for transformers' `generate`, and a callback for its tokens."""

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

from triptych.interfaces import Sampling
from triptych.utils.finite import all_finite, require_finite
from triptych.utils.rng import mix


def choice(sampling: Sampling) -> LogitsProcessorList:
    """Logits processors that sample as `sampling` says; an empty list at temperature 0."""
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
        return scores + self.noise(scores.shape[1]).to(scores.device, non_blocking=True)

    def noise(self, size: int) -> Tensor:
        """The next draws of every row on the CPU, [B, size] in float32."""
        waits = [torch.empty(size).exponential_(generator=each) for each in self.generators]
        return -torch.stack(waits).log()


class Forbid(LogitsProcessor):
    """Keeps each row from its own tokens."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        places = [(row, token) for row, some in enumerate(tokens) for token in some]
        self.rows, self.tokens = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not len(self.rows):
            return scores
        self.rows, self.tokens = self.rows.to(scores.device), self.tokens.to(scores.device)
        return scores.index_put((self.rows, self.tokens), scores.new_tensor(-torch.inf))


class Logits(LogitsProcessor):
    """Notes whether the logits of the last step were finite; `Watch` reads it."""

    finite: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.finite = all_finite(scores)
        return scores


class Watch(StoppingCriteria):
    """Stopping criterion that passes the tokens [B] of every step to a callback, which ends rows.

    Raises:
        NotFiniteError: logits were NaN or infinite before the call.
    """

    def __init__(self, on_tokens: Callable[[list[int]], list[bool]], logits: Logits) -> None:
        self.on_tokens, self.logits = on_tokens, logits

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        # in one piece: the GPU is waited for once a step
        *tokens, finite = torch.cat([input_ids[:, -1], self.logits.finite[None]]).cpu()
        require_finite(finite.bool(), "the language model's logits")
        enough = self.on_tokens([int(token) for token in tokens])
        # not torch.tensor(..., device=...), which waits until the list is copied
        return torch.tensor(enough).to(input_ids.device, non_blocking=True)


def none_ends(tokens: list[int]) -> list[bool]:
    """For `Watch`, where nobody ends a row before its last token."""
    return [False] * len(tokens)
