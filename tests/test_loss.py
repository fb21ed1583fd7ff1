"""The loss: ends of the path, distribution of timesteps, loss of a perfect model."""

import pytest
import torch

from triptych.loss import OBJECTIVES, mse, path, sample_time, shift_time
from triptych.utils.rng import normal, uniform

MANY = 4000


def test_path_goes_from_data_to_noise():
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    start, target = path(data, noise, torch.zeros(2))
    end, _ = path(data, noise, torch.ones(2))
    assert torch.equal(start, data) and torch.equal(end, noise)
    assert torch.equal(target, noise - data)


def test_path_moves_with_its_velocity_and_each_image_has_its_time():
    data, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    here, velocity = path(data, noise, t)
    there, _ = path(data, noise, t + 0.125)
    assert torch.allclose(there - here, 0.125 * velocity, atol=1e-12)
    assert torch.allclose(here[1], (data[1] + noise[1]) / 2)


def test_uniform_time_has_the_thousand_published_values():
    u = (torch.arange(MANY) / MANY).float()
    t = sample_time(u, torch.zeros(MANY), "uniform")
    assert torch.equal((1000 * t.unique()).float(), torch.arange(1, 1001).float())
    assert sample_time(torch.tensor([1 - 2**-24]), torch.zeros(1), "uniform").item() == 1.0


@pytest.mark.parametrize("how", ["uniform", "logit_normal"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_path_keeps_the_format_of_the_features(how, kind):
    features, noise = torch.randn(2, 3, 4, 4, dtype=kind), torch.randn(2, 3, 4, 4, dtype=kind)
    t = sample_time(torch.tensor([0.1, 0.9]), torch.tensor([-1.0, 1.0]), how)
    x_t, target = path(features, noise, t)
    assert x_t.dtype == target.dtype == kind


def test_logit_normal_time_is_denser_in_the_middle():
    numbers = range(MANY)
    t = sample_time(
        uniform(0, "time", numbers), normal((), 0, "time-normal", numbers), "logit_normal"
    )
    assert t.shape == (MANY,) and 0 < t.min() and t.max() <= 1
    assert t.median() == pytest.approx(0.5, abs=0.03)
    # P(0.25 < sigmoid(n) < 0.75) = P(|n| < ln 3) = 0.728
    assert ((t > 0.25) & (t < 0.75)).float().mean() == pytest.approx(0.728, abs=0.03)


@pytest.mark.parametrize("how", ["uniform", "logit_normal"])
def test_a_shift_divides_the_signal_to_noise_ratio(how):
    numbers = range(MANY)
    draws = uniform(0, "time", numbers), normal((), 0, "time-normal", numbers)
    t, shifted = sample_time(*draws, how).double(), sample_time(*draws, how, 5.0).double()
    inside = t < 0.99  # where float32 still tells 1 - t apart
    ratio, smaller = (1 - t) / t, (1 - shifted) / shifted
    assert torch.allclose(smaller[inside], ratio[inside] / 5, rtol=1e-3)
    assert torch.equal(sample_time(*draws, how, 1.0), sample_time(*draws, how))
    assert shift_time(torch.tensor([0.0, 1.0]), 5.0).tolist() == [0.0, 1.0]


def test_mse_is_taken_in_float32():
    a, b = torch.tensor([256.0, 1.0]), torch.tensor([1.0, 1.0])
    loss = mse(a.to(torch.bfloat16), b.to(torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.item() == 255**2 / 2  # not a number that bfloat16 has


@pytest.mark.parametrize("how", ["uniform", "logit_normal"])
def test_perfect_model_of_a_gaussian_pays_the_irreducible_loss(how):
    mean, deviation, number = 0.7, 0.5, 2000
    shape = (4, 6, 6)
    data = mean + deviation * normal(shape, 1, "data", range(number))
    noise = normal(shape, 0, "noise", range(number))
    draws = uniform(0, "time", range(number)), normal((), 0, "time-normal", range(number))
    t = sample_time(*draws, how)
    x_t, target = path(data, noise, t)
    u = t.float()[:, None, None, None]
    spread = ((1 - u) * deviation) ** 2 + u**2  # variance of x_t
    slope = (u - (1 - u) * deviation**2) / spread
    perfect = -mean + slope * (x_t - (1 - u) * mean)
    irreducible = (deviation**2 / spread).mean()
    assert mse(perfect, target) == pytest.approx(irreducible.item(), rel=0.02)
    assert mse(perfect + 0.1, target) == pytest.approx(irreducible.item() + 0.01, rel=0.02)


def test_the_three_objectives_of_the_paper():
    assert {(o.target, o.loss) for o in OBJECTIVES.values()} == {
        ("clip", "flow"),
        ("clip", "mse"),
        ("vae", "flow"),
    }
