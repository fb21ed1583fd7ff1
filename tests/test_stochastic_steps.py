"""Steps with noise: their densities, and where they end for distributions known in closed form."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from triptych.stochastic_steps import coefficient_preserving_step, flow_sde_step

LEVELS = (0.0, 0.3, 0.7, 1.0)


def take(step, x, velocity, *numbers):
    """A step of all rows at the same times and noise level."""
    return step(x, velocity, *(torch.full((len(x),), number) for number in numbers))


def gaussian_velocity(x, t, mean, std):
    """E[noise - features | x_t = x] for features from N(mean, std^2)."""
    variance = (1 - t) ** 2 * std**2 + t**2
    centred = x - (1 - t) * mean
    return (t * centred - (1 - t) * std**2 * centred) / variance - mean


def walk(step, velocity, level, steps, number=20000):
    """x at t = 0 of `number` scalars, from noise, by a grid of equal steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, 1, 1, 1, generator=generator)
    grid = torch.linspace(1, 0, steps + 1).tolist()
    for t, t_next in zip(grid, grid[1:], strict=False):
        noise = torch.randn(x.shape, generator=generator)
        x = take(step, x, velocity(x, t), t, t_next, level).sample(noise)
    return x


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mean,std", [(2.0, 0.5), (-1.0, 1.5)])
def test_an_sde_ends_in_the_distribution_of_the_flow(level, mean, std):
    x = walk(flow_sde_step, lambda x, t: gaussian_velocity(x, t, mean, std), level, 400)
    assert x.mean().item() == pytest.approx(mean, abs=0.03)
    assert x.std().item() == pytest.approx(std, rel=0.03)


def test_noise_is_in_the_path_and_not_only_in_the_start():
    one = walk(flow_sde_step, lambda x, t: gaussian_velocity(x, t, 0.0, 1.0), 0.7, 50)
    none = walk(flow_sde_step, lambda x, t: gaussian_velocity(x, t, 0.0, 1.0), 0.0, 50)
    assert torch.corrcoef(torch.stack([one.flatten(), none.flatten()]))[0, 1] < 0.9


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("steps", [2, 10])
def test_preserved_coefficients_lead_to_a_single_image_in_any_steps(level, steps):
    def velocity(x, t):
        return (x - 3.0) / t  # the way from x to an image of threes

    x = walk(coefficient_preserving_step, velocity, level, steps, number=100)
    torch.testing.assert_close(x, torch.full_like(x, 3.0))


def test_preserved_coefficients_keep_the_weight_of_all_noise():
    x, velocity = torch.zeros(4000, 1, 1, 1), torch.zeros(4000, 1, 1, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x = x + noise  # x_1 of an image of zeros
    step = take(coefficient_preserving_step, x, noise + velocity, 1.0, 0.6, 0.5)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert step.sample(other).std().item() == pytest.approx(0.6, rel=0.04)


def test_log_probabilities_are_those_of_a_multivariate_normal():
    generator = torch.Generator().manual_seed(0)
    x, velocity, value = torch.randn(3, 2, 4, 2, 2, generator=generator)
    step = take(flow_sde_step, x, velocity, 0.8, 0.7, 0.7)
    normal = MultivariateNormal(step.mean.flatten(1), step.std[0].item() ** 2 * torch.eye(16))
    torch.testing.assert_close(step.log_prob(value), normal.log_prob(value.flatten(1)) / 16)
    distance = (value - step.mean).square().flatten(1).mean(1)
    torch.testing.assert_close(step.squared_distance(value), -distance)


def test_the_first_step_takes_the_level_of_the_next_time():
    x, velocity = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    step = take(flow_sde_step, x, velocity, 1.0, 0.9, 0.7)
    assert step.std.item() == pytest.approx(0.7 * math.sqrt(0.9 / 0.1) * math.sqrt(0.1))


def test_half_precision_does_not_reach_the_densities():
    x, velocity, value = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    half = take(flow_sde_step, x.bfloat16(), velocity.bfloat16(), 0.8, 0.7, 0.7)
    assert (
        half.mean.dtype == torch.float32 and half.log_prob(value.bfloat16()).dtype == torch.float32
    )


def test_a_step_without_noise_is_the_plain_one():
    x, velocity = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for make in (flow_sde_step, coefficient_preserving_step):
        step = take(make, x, velocity, 0.8, 0.7, 0.0)
        torch.testing.assert_close(step.sample(torch.ones_like(x)), x - 0.1 * velocity)


def test_rows_have_times_and_noise_of_their_own():
    x, velocity = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.8, 0.4, 0.1])
    levels = torch.tensor([0.7, 0.0, 0.3])
    for make in (flow_sde_step, coefficient_preserving_step):
        whole = make(x, velocity, *times, levels)
        for row in range(3):
            only = slice(row, row + 1)
            one = make(x[only], velocity[only], *(each[only] for each in (*times, levels)))
            torch.testing.assert_close(whole.mean[only], one.mean)
            torch.testing.assert_close(whole.std[only], one.std)
