"""Losses from rewards against what their papers say of their values and gradients."""

import math

import pytest
import torch

from triptych.loss import path
from triptych.policy_loss import (
    advantages,
    clipped_policy_loss,
    matching_log_prob,
    nft_loss,
    optimality,
    preference_loss,
    velocity_penalty,
)

SHAPE = (3, 4, 2, 2)


@pytest.fixture
def drawn():
    """Features, x_t, t and the target of the flow."""
    generator = torch.Generator().manual_seed(0)
    features, noise = torch.randn(2, *SHAPE, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.9])
    return features, *path(features, noise, t), t


def random(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def nft(velocity, old, features, x_t, t, optimality, beta=1.0):
    where = {"features": features, "x_t": x_t, "t": t}
    return nft_loss(velocity, old, **where, optimality=optimality, beta=beta)


def gradient(loss, value):
    value = value.clone().requires_grad_()
    return torch.autograd.grad(loss(value).sum(), value)[0]


def test_advantages_of_groups():
    rewards = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert advantages(rewards, "none").tolist() == [[-1, 1], [0, 0]]
    torch.testing.assert_close(
        advantages(rewards, "group")[0], torch.tensor([-1.0, 1.0]), rtol=1e-3, atol=0
    )
    spread = rewards.std(correction=0).item()
    torch.testing.assert_close(advantages(rewards)[0, 1], torch.tensor(1 / (spread + 1e-4)))
    assert advantages(rewards, "group")[1].tolist() == [0, 0]


def test_optimality_is_a_probability():
    assert optimality(torch.tensor([-9.0, -1, 0, 0.5, 9]), 2.0).tolist() == [0, 0.25, 0.5, 0.625, 1]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_at_the_old_policy_is_a_weighted_flow_loss(drawn, beta):
    features, x_t, target, t = drawn
    old, r = random(1), torch.tensor([0.0, 0.5, 0.8])
    found = gradient(lambda v: nft(v, old, features, x_t, t, r, beta), old)

    def flow(v):
        square = (v - target).square().flatten(1).mean(1)
        scale = (t * (old - target).abs().flatten(1).mean(1)).detach()
        return (2 * r - 1) * t**2 * square / scale

    torch.testing.assert_close(found, gradient(flow, old))
    assert found[1].abs().max() < 1e-6 and found[0].abs().max() > 0


def test_nft_follows_a_good_sample_and_flees_a_bad_one(drawn):
    features, x_t, target, t = drawn
    old = random(1)
    good = gradient(lambda v: nft(v, old, features, x_t, t, torch.ones(3)), old)
    bad = gradient(lambda v: nft(v, old, features, x_t, t, torch.zeros(3)), old)
    assert ((old - target) * good).sum() > 0
    torch.testing.assert_close(good, -bad)


def test_a_good_sample_is_learned_exactly(drawn):
    features, x_t, target, t = drawn
    loss = nft(target, random(1), features, x_t, t, torch.ones(3))
    torch.testing.assert_close(loss, torch.zeros(3), atol=1e-6, rtol=0)


def test_a_ratio_is_exactly_one_before_the_first_update():
    log_prob = torch.randn(5, generator=torch.Generator().manual_seed(0))
    advantage = torch.arange(5.0) - 2
    assert torch.equal(clipped_policy_loss(log_prob, log_prob.clone(), advantage, 1e-4), -advantage)
    found = gradient(lambda p: clipped_policy_loss(p, log_prob, advantage, 1e-4), log_prob)
    torch.testing.assert_close(found, -advantage)


def test_a_clipped_ratio_has_no_gradient():
    old, new = torch.zeros(4), torch.tensor([0.5, 0.5, -0.5, -0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = gradient(lambda p: clipped_policy_loss(p, old, advantage, 0.2), new)
    expected = torch.tensor([0.0, math.exp(0.5), -math.exp(-0.5), 0.0])
    torch.testing.assert_close(found, expected)


def test_matching_is_a_weighted_flow_loss_before_the_first_update(drawn):
    _, _, target, _ = drawn
    velocity, advantage = random(1), torch.tensor([1.0, -2.0, 0.0])
    old = matching_log_prob(velocity, target)

    def loss(v):
        return clipped_policy_loss(matching_log_prob(v, target), old, advantage, 1e-5)

    found = gradient(loss, velocity)
    expected = 2 * advantage[:, None, None, None] * (velocity - target) / 16
    torch.testing.assert_close(found, expected)


def test_preferences_draw_the_chosen_image_and_push_the_other():
    before = torch.tensor([-0.3, -0.4])
    same = preference_loss(before, before, before, before, 500.0)
    torch.testing.assert_close(same, torch.full((2,), math.log(2)))
    good = gradient(lambda p: preference_loss(p, before, before, before, 500.0), before)
    bad = gradient(lambda p: preference_loss(before, p, before, before, 500.0), before)
    torch.testing.assert_close(good, torch.full((2,), -500.0 / 4))
    torch.testing.assert_close(bad, -good)


def test_losses_are_float32_whatever_they_get(drawn):
    features, x_t, target, t = (each.bfloat16() for each in drawn)
    velocity = random(1).bfloat16()
    for loss in (
        nft(velocity, velocity, features, x_t, t, torch.ones(3)),
        matching_log_prob(velocity, target),
        velocity_penalty(velocity, target),
    ):
        assert loss.dtype == torch.float32 and loss.shape == (3,)
