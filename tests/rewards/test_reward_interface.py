"""Scores of a reward, and the sentence about one that returns something else."""

import pytest
import torch

from triptych.interfaces import Reward, RewardSample, as_ranker, as_reward, ranked, rewarded
from triptych.utils.errors import UserError

IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
SAMPLES = [RewardSample(prompt, f"key{n}") for n, prompt in enumerate(("a", "bb", "ccc"))]


def length(images, samples):
    return torch.tensor([len(each.prompt) for each in samples])


class Named(Reward):
    name = "keys"

    def __call__(self, images, samples):
        return torch.tensor([float(each.key == "key1") for each in samples])


def test_a_function_is_a_reward_with_its_name():
    reward = as_reward(length)
    assert reward.name == "length" and as_reward(reward) is reward
    assert rewarded(reward, IMAGES, SAMPLES)["length"].tolist() == [1, 2, 3]


def test_scores_are_float32_without_gradient():
    value = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (scores,) = rewarded(as_reward(lambda images, samples: value), IMAGES, SAMPLES).values()
    assert scores.dtype == torch.float32 and not scores.requires_grad


def test_a_reward_ranks_candidates():
    assert as_ranker(Named()).name == "keys"
    assert ranked(as_reward(length), IMAGES, ["a", "bb", "c"]) == [1, 2, 1]


@pytest.mark.parametrize(
    "function,said",
    [
        (lambda images, samples: torch.zeros(2), r"scores of shape \[2\] for 3 images"),
        (lambda images, samples: torch.zeros(3, 1), r"scores of shape \[3, 1\]"),
        (lambda images, samples: torch.tensor([0, float("nan"), 1]), "returned nan for .* 'bb'"),
        (lambda images, samples: torch.tensor([0, 1, float("inf")]), "returned inf for .* 'ccc'"),
        (lambda images, samples: samples[5], "failed on 3 images with IndexError"),
    ],
)
def test_a_bad_reward_is_named(function, said):
    with pytest.raises(UserError, match=f"the reward .<lambda>. (returned )?{said}"):
        rewarded(as_reward(function), IMAGES, SAMPLES)


@pytest.mark.parametrize("given", [None, 3, "reward", Named])
def test_what_cannot_be_called_is_refused(given):
    with pytest.raises(UserError, match="cannot be called; give a triptych.interfaces.Reward"):
        as_reward(given)
