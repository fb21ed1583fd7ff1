"""Two scales of guidance: their formula, and no call of the network that they cancel."""

import pytest
import torch
from builders import built, dit, needed, shaken, unified

from triptych.guidance import guided, rescaled
from triptych.interfaces import Condition, Source
from triptych.sampler import noise_from_seeds, sample_flow

SHAPE = (8, 3, 3)


def model_of(source):
    model = dit(source=source)
    model.configure_shapes(SHAPE, 24)
    return shaken(built(model), 0.1)


def given(rows=2):
    draw = torch.Generator().manual_seed(1)
    x, features = (torch.randn(rows, *SHAPE, generator=draw) for _ in range(2))
    return x, torch.full((rows,), 0.4), torch.randn(rows, 5, 24, generator=draw), features


def by_hand(model, present, scale, image_scale, negative=None):
    """The formula, from three calls of the network."""
    x, t, condition, features = given(len(present))
    null = torch.zeros_like(condition) if negative is None else negative.expand_as(condition)
    source, none = (Source(features, torch.tensor(p)) for p in (present, [False] * len(present)))
    nothing, image = model(x, t, null, none), model(x, t, null, source)
    both = model(x, t, condition, source)
    return nothing + image_scale * (image - nothing) + scale * (both - image)


SCALES = [(1.0, 1.0), (3.0, 1.0), (3.0, 1.5), (1.0, 1.5), (2.0, 2.0), (0.0, 1.5), (3.0, 0.0)]


@pytest.mark.parametrize("source", ["channels", "tokens"])
@pytest.mark.parametrize("present", [[True, True], [True, False]])
@pytest.mark.parametrize("scale, image_scale", SCALES)
@torch.no_grad()
def test_guidance_is_its_formula(source, present, scale, image_scale):
    model, (x, t, condition, features) = model_of(source), given()
    for negative in (None, torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(4))):
        velocity = guided(
            model.with_cached_condition,
            condition,
            guidance_scale=scale,
            image_guidance_scale=image_scale,
            negative_condition=negative,
            source=Source(features, torch.tensor(present)),
        )
        expected = by_hand(model, present, scale, image_scale, negative)
        assert torch.allclose(velocity(x, t), expected, atol=2e-5)


@pytest.mark.parametrize(
    "scale, image_scale, groups",
    [(1.0, 1.0, 1), (3.0, 1.0, 2), (2.0, 2.0, 2), (3.0, 1.5, 3), (1.0, 1.5, 3)],
)
def test_only_what_the_scales_leave_is_computed(scale, image_scale, groups):
    rows, model, (x, _, condition, features) = [], model_of("channels"), given()
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    sample_flow(
        model,
        Condition(condition),
        x,
        num_inference_steps=3,
        guidance_scale=scale,
        image_guidance_scale=image_scale,
        source=Source(features, torch.ones(2, dtype=torch.bool)),
    )
    assert rows == [2 * groups] * 3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_without_a_source_the_image_scale_changes_no_bit(scale):
    model, (x, _, condition, _) = model_of("channels"), given()
    options = {"num_inference_steps": 3, "guidance_scale": scale}
    plain = sample_flow(model, Condition(condition), x, **options)
    other = sample_flow(model, Condition(condition), x, **options, image_guidance_scale=2.5)
    assert torch.equal(plain, other)


def test_the_interval_limits_both_scales():
    rows, model, (_, _, condition, features) = [], model_of("channels"), given()
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    sample_flow(
        model,
        Condition(condition),
        noise_from_seeds(SHAPE, [0, 1]),
        num_inference_steps=4,
        guidance_scale=3.0,
        image_guidance_scale=1.5,
        guidance_interval=(0.3, 0.8),
        source=Source(features, torch.ones(2, dtype=torch.bool)),
    )
    assert rows == [2, 6, 6, 2]  # at t = 1, 0.75, 0.5, 0.25


def test_a_call_replaces_the_interval_of_the_model(weights):
    model = unified("stage2", weights=needed(weights, "stage2"))
    model.configure_model()
    generation = shaken(model.eval().generation, 0.1)
    condition, seeds = Condition(torch.randn(2, 4, 64)), [0, 1]
    always, late = (
        generation.sample(condition, seeds, guidance_interval=interval)
        for interval in (None, (0.0, 0.5))
    )
    assert not torch.allclose(always, late, atol=1e-3)
    generation.sampling = generation.sampling.updated(guidance_interval=(0.0, 0.5))
    assert torch.equal(generation.sample(condition, seeds), late)
    whole = generation.sample(condition, seeds, guidance_interval=(0.0, 1.0))
    assert torch.equal(whole, always)


# --- rescaling ------------------------------------------------------------------------------------


def test_rescaling_gives_the_clean_features_the_deviation_of_the_conditional_ones():
    draw = torch.Generator().manual_seed(3)
    x, v, c = (torch.randn(2, *SHAPE, generator=draw) for _ in range(3))
    t = torch.tensor([0.3, 0.8])
    times = t[:, None, None, None]

    def clean(velocity):
        return x - times * velocity

    for strength in (0.25, 1.0):
        found = clean(rescaled(3 * v, c, x, t, strength))
        for row in range(2):  # by hand, an image at a time
            guided_, target = clean(3 * v)[row], clean(c)[row]
            factor = target.flatten().std() / guided_.flatten().std()
            expected = strength * guided_ * factor + (1 - strength) * guided_
            assert torch.allclose(found[row], expected, atol=1e-5)
    whole = clean(rescaled(3 * v, c, x, t, 1.0))
    assert torch.allclose(whole.std((1, 2, 3)), clean(c).std((1, 2, 3)), atol=1e-5)


def test_at_time_zero_the_velocity_stays():
    x, v, c = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rescaled(v, c, x, torch.zeros(2), 1.0), v)


@pytest.mark.parametrize("scale, image_scale", SCALES)
@torch.no_grad()
def test_rescaling_holds_for_both_scales(scale, image_scale):
    model, (x, t, condition, features) = model_of("channels"), given()
    source = Source(features, torch.tensor([True, True]))
    options = {"guidance_scale": scale, "image_guidance_scale": image_scale, "source": source}
    bind = model.with_cached_condition
    velocity = guided(bind, condition, **options, rescale=0.7)(x, t)
    plain = by_hand(model, [True, True], scale, image_scale)
    both = model(x, t, condition, source)
    expected = rescaled(plain, both, x, t, 0.7)
    assert torch.allclose(velocity, expected, atol=5e-5)
    assert (scale, image_scale) == (1.0, 1.0) or not torch.allclose(velocity, plain, atol=1e-3)
    off = guided(bind, condition, **options, rescale=0.0)(x, t)
    assert torch.equal(off, guided(bind, condition, **options)(x, t))


def test_sampling_rescales_inside_the_interval_only():
    model, (x, _, condition, _) = model_of(None), given()
    options = {"num_inference_steps": 4, "guidance_scale": 4.0}
    plain = sample_flow(model, Condition(condition), x, **options)
    none = sample_flow(model, Condition(condition), x, **options, guidance_rescale=0.0)
    full = sample_flow(model, Condition(condition), x, **options, guidance_rescale=1.0)
    assert torch.equal(plain, none) and not torch.allclose(plain, full, atol=1e-3)
    options["guidance_interval"] = (0.0, 0.01)  # of no step
    outside = sample_flow(model, Condition(condition), x, **options, guidance_rescale=1.0)
    assert torch.equal(outside, sample_flow(model, Condition(condition), x, **options))
