"""Register queries: they run with the others, and the velocity model does not see them."""

from dataclasses import replace

import pytest
import torch
from builders import batches, dit, unified

from triptych.checkpoints import save_weights
from triptych.inference.image_generation import condition
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.modules import GenerationModule
from triptych.utils.errors import UserError


@pytest.fixture
def model(weights):
    model = unified("stage2", weights=weights, num_registers=3)
    model.configure_model()
    return model.train()


@pytest.fixture
def batch(model, samples):
    return batches(model, samples, TEXT_TO_IMAGE)


def test_the_condition_is_that_of_the_queries_behind_them(model, batch):
    panel = model.generation
    assert panel.queries.shape == (3 + 4, model.understanding.vlm.width)
    inputs = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        whole = model.understanding.vlm.condition(*inputs, panel.queries).hidden_states
        states = panel.condition_of(batch).hidden_states
        without = model.understanding.vlm.condition(*inputs, panel.queries[3:]).hidden_states
    torch.testing.assert_close(states, whole[:, 3:])
    assert not torch.allclose(states, without, rtol=1e-2)  # the others attend to them


def test_registers_learn(model, batch):
    model.step(batch)[0].backward()
    assert model.generation.queries.grad.abs().sum(1).all()


def test_images_are_made_with_them(model):
    model.eval()
    states = condition(model, ["a red circle", "two blue squares"])
    assert states.hidden_states.shape == (2, 4, model.understanding.vlm.width)
    assert model._features_of_a_space().shape == (1, *model.generation.feature_shape)


def test_weights_without_them_do_not_fit(weights, tmp_path):
    plain = unified("stage2", weights=weights)
    plain.configure_model()
    save_weights(plain.trained_state(), tmp_path / "w.safetensors", {}, torch.float32)
    weights = replace(weights, generation=str(tmp_path / "w.safetensors"))
    model = unified("stage2", weights=weights, num_registers=3)
    with pytest.raises(UserError, match=r"generation\.queries"):
        model.configure_model()


@pytest.mark.parametrize("sizes", [{"num_registers": -1}, {"num_queries": 0}])
def test_impossible_numbers_are_refused(sizes):
    with pytest.raises(UserError, match="give 1 query or more, and 0 registers or more"):
        GenerationModule(dit(), **{"num_queries": 4, **sizes})
