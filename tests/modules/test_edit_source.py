"""Training with the source images of edits: batches, draws, gradients, and what stays as it was."""

from dataclasses import replace

import pytest
import torch
from builders import relative, unified
from edit_models import edit_model, learned, mixed_batch
from safetensors.torch import load_file

from triptych.interfaces import BatchContents
from triptych.modules.source import source_of
from triptych.modules.unused_parts import unused_parts
from triptych.utils.errors import UserError
from triptych.utils.images import square

SOURCES = ["channels", "tokens"]


def always(model, **flow):
    model.generation.flow = replace(model.generation.flow, **flow)
    return model.train()


@pytest.fixture
def model(weights):
    return edit_model(weights=weights)


@pytest.fixture
def batch(model, shapes_folder, edits_folder):
    return mixed_batch(model, shapes_folder / "train", edits_folder / "train")


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_has_the_sources_of_its_edits(batch, edits_folder):
    from triptych.data_modules import ShardFolder

    assert batch.has_source.tolist() == [False, True, False, True] and batch.may_have_source
    shards = ShardFolder(edits_folder / "train").open()
    expected = torch.stack([square(shards.image(n, "source"), 48) for n in (1, 3)])
    assert (batch.source_pixels.float() - expected.float()).abs().mean() < 1
    assert not torch.equal(batch.source_pixels, batch.target_pixels[[1, 3]])


def test_a_reconstruction_has_no_source(model, shapes_folder):
    """Its source would be its target."""
    images = shapes_folder / "train"
    batch = mixed_batch(model, images, images, "eee")
    assert len(batch.image_grid_thw) == 3  # the language model sees them
    assert batch.source_pixels is None and batch.has_source is None and batch.may_have_source
    assert not source_of(batch, model.target_encoder).present.any()


def test_a_model_that_takes_no_source_is_given_none(weights, shapes_folder, edits_folder):
    model = unified("stage2", weights=weights)
    model.configure_model()
    batch = mixed_batch(model, shapes_folder / "train", edits_folder / "train")
    assert batch.source_pixels is None and not batch.may_have_source


def test_a_source_is_encoded_like_a_target(model, batch):
    source = source_of(batch, model.target_encoder)
    with torch.no_grad():
        expected = model.target_encoder(batch.source_pixels)
    assert source.present.tolist() == batch.has_source.tolist()
    assert torch.equal(source.features[batch.has_source], expected)
    assert not source.features[~batch.has_source].any()


def test_a_source_moves_to_the_device_with_its_batch(batch):
    moved = batch.to("meta")
    assert moved.has_source.is_meta and moved.source_pixels.is_meta


# --- the step -------------------------------------------------------------------------------------


def test_the_first_step_with_channels_is_that_without_a_source(weights, model, batch):
    plain = unified("stage2", weights=weights)
    plain.configure_model()
    plain.train()
    losses = [each.train().step(batch)[0] for each in (plain, model)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    own = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(own[name].grad, parameter.grad), name


@pytest.mark.parametrize("source", SOURCES)
def test_gradients_reach_what_is_learned_of_a_source(source, weights, shapes_folder, edits_folder):
    model = always(edit_model(weights=weights, source=source), source_drop_prob=0.0)
    folders = shapes_folder / "train", edits_folder / "train"

    def gradients(wanted):
        model.zero_grad()
        model.step(mixed_batch(model, *folders, wanted))[0].backward()
        held = model.generation.dit.named_parameters()
        return [p.grad for name, p in held if ".source_" in name]

    assert all(gradient.any() for gradient in gradients("cece"))
    # without an edit zero, not None: ranks sum gradients of the same parameters
    assert all(gradient is not None and not gradient.any() for gradient in gradients("cccc"))


@pytest.mark.parametrize("source", SOURCES)
def test_a_dropped_source_is_none(source, weights, shapes_folder, edits_folder):
    model = learned(edit_model(weights=weights, source=source))
    batch = mixed_batch(model, shapes_folder / "train", edits_folder / "train")
    without = replace(batch, source_pixels=None, has_source=None)
    with torch.no_grad():
        always(model, source_drop_prob=1.0)
        dropped, never = model.step(batch)[0], model.step(without)[0]
        assert torch.equal(dropped, never)
        always(model, source_drop_prob=0.0)
        assert not torch.allclose(model.step(batch)[0], never, rtol=1e-4)


def test_source_and_condition_are_dropped_apart(weights, batch):
    model = edit_model(weights=weights)
    draws = {each.stream: each(0, torch.arange(4000)) for each in model.random_draws()}
    both = (draws["drop"] < 0.1) & (draws["source-drop"] < 0.1)
    assert 0.005 < both.float().mean() < 0.016
    assert 0.08 < (draws["source-drop"] < 0.1).float().mean() < 0.12


def test_draws_are_as_before_without_a_source(model):
    plain = unified("stage2").random_draws()
    assert [draw.stream for draw in plain] == ["noise", "time", "time-normal", "drop"]
    assert model.random_draws()[:-1] == plain
    assert model.random_draws()[-1].stream == "source-drop"


def test_several_noises_share_a_source(weights, batch):
    """The loss over repeats is that of the repeats alone, each with its own drop."""
    model = always(learned(edit_model(weights=weights)), num_noise_samples=3)
    drawn = {each.stream: each(0, batch.sample_ids) for each in model.random_draws()}
    batch.draws = drawn
    with torch.no_grad():
        together = model.step(batch)[0]
        always(model, num_noise_samples=1)
        alone = []
        for n in range(3):
            batch.draws = {stream: values[n::3] for stream, values in drawn.items()}
            alone.append(model.step(batch)[0])
    assert torch.allclose(together, sum(alone) / 3, rtol=1e-5)


def test_the_loss_at_a_time_sees_the_source(weights, batch):
    model = learned(edit_model(weights=weights)).eval()
    seen = model.loss_at_timesteps(batch, [0.5])
    without = replace(batch, source_pixels=None, has_source=None)
    assert not torch.allclose(seen, model.loss_at_timesteps(without, [0.5]), rtol=1e-4)


def test_prediction_sees_the_source(weights, batch):
    model = learned(edit_model(weights=weights)).eval()
    with torch.no_grad():
        seen = model.predict_step(batch, 0)["images"]
        without = replace(batch, source_pixels=None, has_source=None)
        other = model.predict_step(without, 0)["images"]
    assert torch.equal(seen[0], other[0]) and not torch.equal(seen[1], other[1])


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator_files(weights, tmp_path_factory):
    """Weight files of a generator without sources, and one with what is learned of them."""
    from triptych.checkpoints.weight_files import save_weights

    folder, files = tmp_path_factory.mktemp("generator"), {}
    for source in ("none", "channels"):
        model = learned(edit_model(weights=weights, source=source))
        held = {n: p for n, p in model.named_parameters() if n.startswith("generation.")}
        files[source] = str(folder / f"{source}.safetensors")
        save_weights(held, folder / f"{source}.safetensors", {}, torch.float32)
    return files


def test_a_generator_without_sources_can_be_trained_to_take_them(weights, generator_files):
    """All its weights are as in the file; those of the source start at zero."""
    stored = load_file(generator_files["none"])
    start = replace(weights, generation=generator_files["none"])
    state = dict(edit_model(weights=start).named_parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    new = [n for n in state if n.startswith("generation.") and n not in stored]
    assert len(new) == 2 and not any(state[name].any() for name in new)


def test_weights_of_a_source_are_read_from_their_file(weights, generator_files):
    start = replace(weights, generation=generator_files["channels"])
    state = dict(edit_model(weights=start).named_parameters())
    learned_there = [name for name in state if ".source_" in name]
    stored = load_file(generator_files["channels"])
    assert all(torch.equal(state[name], stored[name]) for name in learned_there)
    assert all(stored[name].any() for name in learned_there)


def test_a_generator_without_sources_is_no_frozen_one_that_takes_them(weights, generator_files):
    start = replace(weights, generation=generator_files["none"])
    with pytest.raises(UserError, match="has no weights for generation.*source_embedder"):
        edit_model("inference", weights=start)


def test_weights_of_a_source_are_refused_by_a_model_without(weights, generator_files):
    model = unified("stage2", weights=replace(weights, generation=generator_files["channels"]))
    with pytest.raises(UserError, match="source_embedder.*which this model does not have"):
        model.configure_model()


# --- parts that a run needs -----------------------------------------------------------------------


def test_the_encoder_is_needed_beside_cached_features_if_there_are_sources():
    sources = BatchContents(True, True, has_sources=True)
    captions = BatchContents(True, True, has_sources=False)
    for source, needed in (("none", False), ("channels", True)):
        model = unified("stage2", dit_sizes={"source": source})
        assert ("encoder" not in unused_parts(model, sources)) == needed
        assert "encoder" in unused_parts(model, captions)


def test_cached_features_of_targets_go_with_live_sources(model, batch):
    learned(model).train()
    with torch.no_grad():
        live = model.step(batch)[0]
        batch.target_features = model.target_encoder(batch.target_pixels)
        batch.target_pixels = None
        assert relative(model.step(batch)[0], live) < 1e-6
