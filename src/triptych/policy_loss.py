"""Losses that teach a flow from rewards, one function each, in the convention of `triptych.loss`:

    x_t = (1 - t) x + t e,    v = e - x,    t = 1 is noise

with x the features of an image that the policy has drawn. Velocities and features are [B,C,h,w],
times [B]; a loss is float32 [B], one for each sample, whatever the dtype of its arguments.

A loss sees log-probabilities or velocities, never a sampler: `clipped_policy_loss` is as good for
the tokens of a discrete model as for the steps of a flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Spread = Literal["none", "group", "all"]

EPSILON = 1e-4
"""Added to the deviation of rewards, as in Flow-GRPO: groups of equal rewards teach nothing."""


def advantages(rewards: Tensor, spread: Spread = "all") -> Tensor:
    """Rewards [P,K] of K images for each of P prompts, without the mean of their prompt.

    Args:
        spread: deviation by which they are divided: that of their group, as in GRPO (Shao et al.
            2024, arXiv 2402.03300); that of all rewards, as in Flow-GRPO (Liu et al. 2025, arXiv
            2505.05470); or none.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if spread == "none":
        return centred
    if spread == "group":
        return centred / (rewards.std(1, keepdim=True, correction=0) + EPSILON)
    return centred / (rewards.std(correction=0) + EPSILON)


def standardized(parts: Mapping[str, Tensor]) -> Tensor:
    """Scores of several rewards, each without its mean and in units of its deviation: [M,...]."""
    return torch.stack(
        [(each - each.mean()) / (each.std(correction=0) + EPSILON) for each in parts.values()]
    )


def optimality(advantage: Tensor, limit: float = 1.0) -> Tensor:
    """r in [0,1] of DiffusionNFT: 1/2 + 1/2 clip(advantage / limit, -1, 1), of any shape.

    The probability that a sample is one to follow; 1/2 says nothing.
    """
    return 0.5 + 0.5 * (advantage / limit).clamp(-1, 1)


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    *,
    features: Tensor,
    x_t: Tensor,
    t: Tensor,
    optimality: Tensor,
    beta: float = 1.0,
) -> Tensor:
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117, eq. 5) for samples of optimality r [B].

        v+ = beta v + (1 - beta) v_old        v- = (1 + beta) v_old - beta v
        loss = [r |x_t - t v+ - x|^2 / w+  +  (1 - r) |x_t - t v- - x|^2 / w-] / beta

    Good samples draw v towards them, bad ones push it away by drawing its reflection v- at v_old.
    |.|^2 is a mean over values, w the mean absolute error of the same estimate, without gradient:
    all times weigh alike. At v = v_old its gradient is that of (2 r - 1) times a flow loss.

    Args:
        velocity: v(x_t) of the policy that learns, at fresh noise and times.
        old_velocity: that of the policy that drew the samples.
    """
    velocity, old = velocity.float(), old_velocity.float()
    positive = _estimate_error(beta * velocity + (1 - beta) * old, features, x_t, t)
    negative = _estimate_error((1 + beta) * old - beta * velocity, features, x_t, t)
    return (optimality * positive + (1 - optimality) * negative) / beta


def _estimate_error(velocity: Tensor, features: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Squared error [B] of the estimate x_t - t v of the features, over its mean absolute error."""
    estimate = x_t.float() - t.float()[:, None, None, None] * velocity
    error = estimate - features.float()
    scale = error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
    return error.square().flatten(1).mean(1) / scale


def clipped_policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), ratio = exp(log_prob - old_log_prob).

    PPO's loss (Schulman et al. 2017, arXiv 1707.06347, eq. 7), of any shape, in float32. Flow-GRPO
    takes it for the steps of an SDE sampler, whose log-probabilities are means over values, with a
    clip of 1e-4.
    """
    ratio = (log_prob.float() - old_log_prob.float()).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def matching_log_prob(velocity: Tensor, target: Tensor) -> Tensor:
    """-|v - target|^2 [B], a mean over values: a flow's log-likelihood but for scale and constant.

    With it `clipped_policy_loss` is advantage weighted matching (Xue et al. 2025, arXiv
    2509.25050): the flow loss of a sample, times its advantage while the ratio is within the clip.
    """
    return -(velocity.float() - target.float()).square().flatten(1).mean(1)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, eq. 14), its flow form, for pairs [B].

        loss = -log sigmoid(beta / 2 margin)
        margin = (chosen - reference_chosen) - (rejected - reference_rejected)

    Args:
        chosen, rejected: `matching_log_prob` of the model that learns, for the preferred image of a
            pair and the other, at the same time and noise.
        reference_chosen, reference_rejected: those of the model before.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -logsigmoid(beta / 2 * margin.float())


def velocity_penalty(velocity: Tensor, reference: Tensor) -> Tensor:
    """|v - v_reference|^2 [B], a mean over values: the distance to the model before the rewards."""
    return (velocity.float() - reference.float()).square().flatten(1).mean(1)
