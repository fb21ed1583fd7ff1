"""The source image of an edit inside of the DiT: no bit where there is none, else in its place."""

import pytest
import torch
from builders import built, dit, shaken

from triptych.interfaces import Source

SOURCES = ["channels", "tokens"]


def made(source="none", **sizes):
    model = dit(source=source, **sizes)
    model.configure_shapes((8, 6, 6), 24)
    return built(model).eval()


def learned(model):
    """`model` with what it learns of a source no longer zero, and the rest as it was."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".source_" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def given(rows=3):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 8, 6, 6, generator=draw)
    return x, torch.full((rows,), 0.4), torch.randn(rows, 5, 24, generator=draw)


def sources(present, seed=2):
    draw = torch.Generator().manual_seed(seed)
    return Source(torch.randn(len(present), 8, 6, 6, generator=draw), torch.tensor(present))


def test_no_key_is_added_without_a_source():
    plain = made().state_dict()
    assert not [name for name in plain if "source" in name]
    for source, added in (
        ("channels", {"source_embedder.weight", "source_embedder.bias"}),
        ("tokens", {"source_type"}),
    ):
        more = made(source).state_dict().keys() - plain.keys()
        assert {name.removeprefix("dit.patch_embedder.") for name in more} == added


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("position_std", [0.0, 1.0])
def test_the_other_weights_are_drawn_as_without_a_source(source, position_std):
    plain = made(position_std=position_std).state_dict()
    other = made(source, position_std=position_std).state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("position_std", [0.0, 1.0])
def test_channels_change_no_bit_at_first(patch_size, position_std):
    sizes = {"patch_size": patch_size, "position_std": position_std}
    plain, other = made(**sizes), made("channels", **sizes)
    assert torch.equal(other(*given(), sources([True] * 3)), plain(*given()))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_row_without_a_source_is_as_in_a_model_without_sources(patch_size):
    model = learned(made("channels", patch_size=patch_size))
    plain = made(patch_size=patch_size)
    mixed = model(*given(), sources([True, False, True]))
    assert torch.equal(mixed[1], plain(*given())[1])
    assert torch.equal(model(*given()), plain(*given()))
    assert not torch.allclose(mixed[0], plain(*given())[0], atol=1e-3)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_tokens_of_a_row_without_a_source_are_not_attended_to(patch_size):
    model = learned(made("tokens", patch_size=patch_size))
    plain = made(patch_size=patch_size)
    mixed = model(*given(), sources([True, False, True]))
    assert torch.allclose(mixed[1], plain(*given())[1], atol=1e-5)
    assert not torch.allclose(mixed[0], plain(*given())[0], atol=1e-3)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_matters_to_its_own_row_alone(source):
    model = learned(made(source))
    one, other = sources([True] * 3), sources([True] * 3)
    other.features[1] += 1
    change = (model(*given(), one) - model(*given(), other)).abs().amax((1, 2, 3))
    assert change[1] > 1e-3 and change[0] < 1e-5 and change[2] < 1e-5


@pytest.mark.parametrize("patch_size", [1, 2])
def test_channels_add_a_patch_to_the_token_at_its_place(patch_size):
    """With the weights of the patch embedding itself the source is added to x."""
    model = made("channels", patch_size=patch_size)
    embed = model.dit.patch_embedder
    with torch.no_grad():
        embed.source_embedder.weight.copy_(embed.proj.weight)
    (x, t, condition), source = given(), sources([True] * 3)
    expected = made(patch_size=patch_size)(x + source.features, t, condition)
    assert torch.allclose(model(x, t, condition, source), expected, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_the_cached_call_with_a_source_is_the_plain_one(source):
    """Also with a negative condition, in two groups of rows and in three."""
    model = shaken(learned(made(source)))
    (x, t, condition), negative = given(), torch.randn(1, 5, 24)
    for groups in (1, 2, 3):
        rows = Source.cat([sources([True, False, True], seed) for seed in range(groups)])
        told = [negative.expand_as(condition)] * (groups - 1) + [condition]
        many = x.repeat(groups, 1, 1, 1), t.repeat(groups)
        call = model.with_cached_condition(condition, negative if groups > 1 else None, source=rows)
        assert torch.allclose(call(*many), model(*many, torch.cat(told), rows), atol=1e-5)
