"""The sampler: equations with known solutions, guidance by its formula, a seed for each image."""

import math

import pytest
import torch
from builders import built, dit, shaken

from triptych.interfaces import Condition, VelocityModel
from triptych.loss import shift_time
from triptych.sampler import (
    SAMPLERS,
    model_calls,
    noise_from_seeds,
    sample_flow,
    sample_regression,
    times,
)
from triptych.utils.errors import UserError


class Stub(VelocityModel):
    """A velocity that is a formula of (x, t, condition); keeps what it was called with."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.calls = velocity, []

    def build(self):
        pass

    def configure_shapes(self, feature_shape, condition_width):
        pass

    def forward(self, x_t, t, condition):
        self.calls.append((x_t, t, condition))
        return self.velocity(x_t, t[:, None, None, None], condition)


def told(number, value=1.0):
    """A condition [number,2,3] whose mean is `value`."""
    return Condition(torch.full((number, 2, 3), value))


def noise(number=2, shape=(3, 4, 4)):
    return noise_from_seeds(shape, range(number))


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_constant_velocity_is_exact(steps):
    start = noise()
    end = sample_flow(
        Stub(lambda x, t, c: torch.full_like(x, 0.5)),
        told(2),
        start,
        num_inference_steps=steps,
        guidance_scale=1.0,
    )
    assert torch.allclose(end, start - 0.5, atol=1e-5)


def test_euler_error_falls_to_first_order():
    start = noise()
    rate = 1.5  # dx/dt = rate * x, so x(0) = x(1) * exp(-rate)

    def error(steps):
        end = sample_flow(
            Stub(lambda x, t, c: rate * x),
            told(2),
            start,
            num_inference_steps=steps,
            guidance_scale=1.0,
        )
        return (end - start * math.exp(-rate)).norm()

    assert 1.85 < error(20) / error(40) < 2.15
    assert 1.9 < error(40) / error(80) < 2.1


def test_closed_form_velocity_reaches_the_target_gaussian():
    mean, deviation = 0.7, 0.5

    def velocity(x, t, condition):
        spread = ((1 - t) * deviation) ** 2 + t**2
        slope = (t - (1 - t) * deviation**2) / spread
        return -mean + slope * (x - (1 - t) * mean)

    end = sample_flow(
        Stub(velocity), told(4), noise(4, (16, 16, 16)), num_inference_steps=100, guidance_scale=1.0
    )
    assert end.mean() == pytest.approx(mean, abs=0.02)
    assert end.std() == pytest.approx(deviation, rel=0.03)


def test_published_sampling_tells_the_model_whole_times():
    """And moves by the exact ones."""
    model = Stub(lambda x, t, c: torch.ones_like(x))
    end = sample_flow(
        model, told(2), noise(), num_inference_steps=30, guidance_scale=1.0, integer_timesteps=True
    )
    asked = [(1000 * t).float().tolist() for _, t, _ in model.calls]
    assert asked == [[float(1000 * k // 30)] * 2 for k in range(30, 0, -1)]
    assert torch.allclose(end, noise() - 1, atol=1e-5)


def test_model_is_called_at_the_published_timesteps():
    model = Stub(lambda x, t, c: torch.zeros_like(x))
    sample_flow(model, told(2), noise(), num_inference_steps=30, guidance_scale=1.0)
    asked = torch.stack([1000 * t for _, t, _ in model.calls])
    expected = torch.linspace(1000, 1000 / 30, 30)
    assert torch.allclose(asked, expected[:, None].expand(30, 2), atol=1e-3)
    assert [round(1000 * float(t), 2) for t in times(30)[:2]] == [1000.0, 966.67]
    assert round(1000 * float(times(30)[-1]), 2) == 33.33


def test_a_shifted_grid_is_that_of_training_and_still_ends_at_the_data():
    model = Stub(lambda x, t, c: torch.full_like(x, 0.5))
    start = noise()
    end = sample_flow(model, told(2), start, num_inference_steps=10, guidance_scale=1.0, shift=4.0)
    asked = torch.stack([t[0] for _, t, _ in model.calls])
    assert torch.allclose(asked, torch.tensor(shift_time(times(10), 4.0)).float(), atol=1e-6)
    assert torch.allclose(end, start - 0.5, atol=1e-5)


def test_guidance_one_is_one_call_a_step_on_the_batch_itself():
    model, shown = Stub(lambda x, t, c: torch.zeros_like(x)), []
    sample_flow(
        model,
        told(2),
        noise(),
        num_inference_steps=5,
        guidance_scale=1.0,
        on_step=lambda i, x, _: shown.append((i, x.shape)),
    )
    assert [len(x) for x, _, _ in model.calls] == [2] * 5
    assert all(torch.equal(c, told(2).hidden_states) for _, _, c in model.calls)
    assert shown == [(i, (2, 3, 4, 4)) for i in range(5)]


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guidance_is_its_formula_with_zeros_as_the_null_condition(guidance):
    start = noise()
    model = Stub(lambda x, t, c: 1 + c.mean((1, 2))[:, None, None, None] * torch.ones_like(x))
    end = sample_flow(model, told(2, 0.25), start, num_inference_steps=4, guidance_scale=guidance)
    assert torch.allclose(end, start - (1 + guidance * 0.25), atol=1e-5)
    for x, _, condition in model.calls:
        assert len(x) == 4 and torch.equal(x[:2], x[2:])
        assert not condition[:2].any() and torch.equal(condition[2:], told(2, 0.25).hidden_states)


def test_no_steps_are_refused():
    with pytest.raises(
        UserError, match="at least 1 step, not 0, and at most 1,000; set num_inference_steps"
    ):
        times(0)


def test_noise_of_an_image_is_that_of_its_seed():
    together = noise_from_seeds((3, 4, 4), [7, 8, 9, 7])
    assert torch.equal(together[2], noise_from_seeds((3, 4, 4), [9])[0])
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_neighbours(guidance):
    model = dit()
    model.configure_shapes((5, 3, 3), 16)
    built(model)
    condition = torch.randn(4, 6, 16)
    seeds = [3, 1, 4, 1]
    together = sample_flow(
        model,
        Condition(condition),
        noise_from_seeds((5, 3, 3), seeds),
        num_inference_steps=5,
        guidance_scale=guidance,
    )
    for i, seed in enumerate(seeds):
        start = noise_from_seeds((5, 3, 3), [seed])
        alone = sample_flow(
            model,
            Condition(condition[i : i + 1]),
            start,
            num_inference_steps=5,
            guidance_scale=guidance,
        )
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_regression_is_one_call_from_zeros():
    model = Stub(lambda x, t, c: c.mean((1, 2))[:, None, None, None] + x)
    features = sample_regression(model, told(2, 0.5), (3, 4, 4))
    ((x, t, _),) = model.calls
    assert not x.any() and torch.equal(t, torch.ones(2))
    assert torch.equal(features, torch.full((2, 3, 4, 4), 0.5))


# --- samplers by name -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_every_sampler_is_exact_on_a_constant_velocity_from_one_step_on(sampler, shift):
    start = noise()
    for steps in (1, 2, 7):
        model = Stub(lambda x, t, c: torch.full_like(x, 0.5))
        end = sample_flow(
            model,
            told(2),
            start,
            num_inference_steps=steps,
            guidance_scale=1.0,
            shift=shift,
            sampler=sampler,
        )
        assert torch.allclose(end, start - 0.5, atol=1e-4)
        assert len(model.calls) == model_calls(sampler, steps)
        asked = sorted({float(t[0]) for _, t, _ in model.calls}, reverse=True)
        assert asked == pytest.approx(shift_time(times(steps), shift).tolist(), abs=1e-6)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "euler"])
def test_the_error_of_the_others_falls_to_second_order(sampler):
    start = noise()

    def error(steps):
        # dx/dt = (1 + t) x, so x(0) = x(1) exp(-3/2)
        model = Stub(lambda x, t, c: (1 + t) * x)
        end = sample_flow(
            model, told(2), start, num_inference_steps=steps, guidance_scale=1.0, sampler=sampler
        )
        return (end - start * math.exp(-1.5)).norm()

    assert 3.2 < error(16) / error(32) < 5.0


def test_an_unknown_sampler_is_refused_with_the_choices():
    with pytest.raises(UserError, match="no sampler 'rk4'; choose from euler, heun, dpm"):
        sample_flow(
            Stub(None), told(2), noise(), num_inference_steps=4, guidance_scale=1.0, sampler="rk4"
        )


def test_guidance_is_limited_to_its_interval():
    model = Stub(lambda x, t, c: 1 + c.mean((1, 2))[:, None, None, None] * torch.ones_like(x))
    start = noise()
    end = sample_flow(
        model,
        told(2, 0.25),
        start,
        num_inference_steps=4,
        guidance_scale=3.0,
        guidance_interval=(0.3, 0.8),
    )
    assert [len(x) for x, _, _ in model.calls] == [2, 4, 4, 2]  # at t = 1, 0.75, 0.5, 0.25
    assert torch.allclose(end, start - (1 + 0.5 * 0.25 + 0.5 * 3 * 0.25), atol=1e-5)
    with pytest.raises(UserError, match="guidance_interval is 0.8 to 0.3; give two numbers"):
        sample_flow(
            model,
            told(2),
            start,
            num_inference_steps=4,
            guidance_scale=3.0,
            guidance_interval=(0.8, 0.3),
        )


def test_each_step_tells_the_features_it_is_on_its_way_to():
    seen = []
    model = Stub(lambda x, t, c: torch.full_like(x, 0.5))
    start = noise()
    sample_flow(
        model,
        told(2),
        start,
        num_inference_steps=4,
        guidance_scale=1.0,
        on_step=lambda i, x, to: seen.append((i, x, to)),
    )
    for index, x, estimate in seen:
        assert torch.allclose(x, start - 0.5 * (index + 1) / 4, atol=1e-5)
        assert torch.allclose(estimate, start - 0.5, atol=1e-5)
    assert torch.equal(seen[-1][1], seen[-1][2])


# --- what does not depend on the noise ------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("given", [False, True])
def test_a_loop_with_kept_keys_and_values_is_the_loop_that_computes_all(guidance, given):
    model = dit()
    model.configure_shapes((5, 3, 3), 16)
    shaken(built(model))
    condition, start = Condition(torch.randn(4, 6, 16)), noise(4, (5, 3, 3))
    negative = torch.randn(1, 6, 16) if given else None
    options = {
        "num_inference_steps": 5,
        "guidance_scale": guidance,
        "negative_condition": negative,
        "sampler": "heun",
    }
    projected = []
    model.caption_projection.register_forward_hook(lambda _, a, out: projected.append(len(out)))
    kept = sample_flow(model, condition, start, **options)
    assert projected == [4 if guidance == 1 else 5]  # once, and the negative one as one row
    plain = sample_flow(lambda *call: model(*call), condition, start, **options)
    assert len(projected) == 1 + model_calls("heun", 5)
    assert torch.allclose(kept, plain, atol=1e-4)
    other = sample_flow(model, Condition(condition.hidden_states.flip(0)), start, **options)
    assert not torch.allclose(other, kept, atol=1e-3)  # and nothing is kept over calls
