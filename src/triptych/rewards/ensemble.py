"""Several rewards as one, which trusts them less where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triptych.interfaces import Reward, RewardSample
from triptych.policy_loss import standardized
from triptych.utils.errors import UserError
from triptych.utils.limits import POSITIVE


class RewardEnsemble(Reward):
    """Mean minus `pessimism` standard deviations over rewards, each in units of its own deviation.

    What deceives one member and not the others is worth less (Coste et al. 2023, arXiv 2310.02743,
    uncertainty-weighted optimization, with the deviation in place of the variance). The units are
    those of the images that are scored together; of a training step, of all of them, whatever the
    ranks.

    Args:
        rewards: two or more, with different names.
        pessimism: weight of the deviation; 0 is the plain mean.

    Raises:
        UserError: there are fewer, two have one name, or `pessimism` is negative.
    """

    name = "ensemble"

    def __init__(self, rewards: list[Reward], pessimism: float = 1.0) -> None:
        names = [reward.name for reward in rewards]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise UserError(
                f"an ensemble has the rewards {names}; give two or more with different names."
            )
        if pessimism != 0 and pessimism not in POSITIVE:
            raise UserError(f"an ensemble has pessimism {pessimism}; give 0 or {POSITIVE}.")
        self.rewards, self.pessimism = list(rewards), pessimism

    def check(self, prompts: Sequence[str]) -> None:
        for reward in self.rewards:
            reward.check(prompts)

    def parts(self, images: Tensor, samples: Sequence[RewardSample]) -> dict[str, Tensor]:
        return {
            reward.name: torch.as_tensor(reward(images, samples)).float().cpu()
            for reward in self.rewards
        }

    def combined(self, parts: Mapping[str, Tensor]) -> Tensor:
        members = standardized(parts)
        return members.mean(0) - self.pessimism * members.std(0, correction=0)

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        return self.combined(self.parts(images, samples))
