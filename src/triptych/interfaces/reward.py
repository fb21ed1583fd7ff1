"""Rewards: scores of generated images that a generator learns from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces.ranker import Ranker
from triptych.utils.errors import UserError


@dataclass(frozen=True)
class RewardSample:
    """What an image was made for."""

    prompt: str
    """The caption, as the data holds it."""
    key: str = ""
    """Name of the sample in its data set; empty for a prompt of no data set."""


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


def rewarded(reward: Reward, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
    """Scores float32 [B] of a reward on the CPU, checked.

    Raises:
        UserError: the reward raised something, or did not return one finite number for each image.
    """
    try:
        scores = torch.as_tensor(reward(images, samples)).detach().float().cpu()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the reward {reward.name!r} failed on {len(images)} images with "
            f"{type(error).__name__}: {error}"
        ) from error
    if scores.shape != (len(images),):
        raise UserError(
            f"the reward {reward.name!r} returned scores of shape {list(scores.shape)} for "
            f"{len(images)} images; return one number for each."
        )
    if not scores.isfinite().all():
        worst = int((~scores.isfinite()).nonzero()[0])
        raise UserError(
            f"the reward {reward.name!r} returned {float(scores[worst])} for an image of "
            f"{samples[worst].prompt[:60]!r}; return a finite number for each image."
        )
    return scores
