"""Rewards: scores of generated images that a generator learns from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces.ranker import Ranker
from triptych.utils.errors import UserError


@dataclass(frozen=True)
class RewardSample:
    """Prompt of an image, and what its data says beside it."""

    prompt: str
    """The caption, as the data holds it."""
    key: str = ""
    """Name of the sample in its data set; empty for a prompt of no data set."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of the sample, such as the fields of its line in a file of prompts."""


RewardFunction = Callable[[Tensor, Sequence[RewardSample]], Tensor]
"""`Reward.__call__` as a function."""


class Reward(Ranker):
    """Scores images for what they were made for, a batch at a time; the highest is the best.

    A reward is a ranker too: `pipe(..., num_candidates=4, ranker=reward)` keeps the best of four.
    """

    name: str = "reward"
    """Name in logs and errors."""

    @abstractmethod
    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        """Scores [B] of images uint8 [B,3,H,W] on the CPU for as many samples."""

    def parts(self, images: Tensor, samples: Sequence[RewardSample]) -> dict[str, Tensor]:
        """Scores [B] by name, of which `combined` makes one: those of an ensemble's members."""
        return {self.name: self(images, samples)}

    def combined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """One score for each image, of those in `parts`, which may be of any shape."""
        (scores,) = parts.values()
        return scores

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self(images, [RewardSample(prompt) for prompt in prompts])


class _FunctionReward(Reward):
    def __init__(self, function: RewardFunction, name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        return self.function(images, samples)


def as_reward(given: Any) -> Reward:
    """A `Reward` of a function of images and samples, or of an object that is called like one.

    Raises:
        UserError: it cannot be called so.
    """
    if isinstance(given, Reward):
        return given
    if not callable(given) or isinstance(given, type):
        raise UserError(
            f"the reward {str(given)[:40]!r} cannot be called; give a triptych.interfaces.Reward, "
            "or a function of images uint8 [B,3,H,W] and samples that returns scores [B]."
        )
    name = getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__)
    return _FunctionReward(given, str(name))


def rewarded(reward: Reward, images: Tensor, samples: Sequence[RewardSample]) -> dict[str, Tensor]:
    """`Reward.parts`, float32 [B] each on the CPU, checked.

    Raises:
        UserError: the reward raised something, or did not return one finite number for each image.
    """
    try:
        parts = reward.parts(images, samples)
        found = {name: torch.as_tensor(value).detach() for name, value in parts.items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the reward {reward.name!r} failed on {len(images)} images with "
            f"{type(error).__name__}: {error}"
        ) from error
    return {name: _checked(name, value.float().cpu(), samples) for name, value in found.items()}


def _checked(name: str, scores: Tensor, samples: Sequence[RewardSample]) -> Tensor:
    if scores.shape != (len(samples),):
        raise UserError(
            f"the reward {name!r} returned scores of shape {list(scores.shape)} for "
            f"{len(samples)} images; return one number for each."
        )
    if not scores.isfinite().all():
        worst = int((~scores.isfinite()).nonzero()[0])
        raise UserError(
            f"the reward {name!r} returned {float(scores[worst])} for an image of "
            f"{samples[worst].prompt[:60]!r}; return a finite number for each image."
        )
    return scores
