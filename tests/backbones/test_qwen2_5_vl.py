"""Qwen2.5-VL against transformers: conditions, masks, training and text."""

import pytest
import torch
from builders import (
    CAPTIONS,
    batches,
    built,
    relative,
    vlm,
)
from drawn_images import drawn
from torch import nn

from triptych.backbones import (
    QwenText,
    QwenVision,
    QwenVL,
)
from triptych.interfaces import IMAGE_TO_TEXT
from triptych.modules import UnderstandingModule
from triptych.prompts import (
    PAD,
    conversation_ids,
    generation_ids,
    pad,
    reconstruction_ids,
    token_id,
)
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def qwen():
    return built(vlm()).eval()


def prompts(tokenizer, kind):
    """Ids and mask of three right-padded rows of different lengths."""
    if kind == "captions":  # they begin alike
        rows = [generation_ids(tokenizer, caption, 256) for caption in CAPTIONS]
    elif kind == "nothing in common":
        rows = [list(range(10 + 50 * i, 10 + 50 * i + 5 * (i + 1))) for i in range(3)]
    else:  # "all the same"
        rows = [generation_ids(tokenizer, CAPTIONS[0], 256)] * 3
    return pad(rows, token_id(tokenizer, PAD))


def mixed_prompts(qwen):
    """Ids, mask, patches and grids of three prompts; the first and the last show an image."""
    tokenizer, images = qwen.tokenizer, drawn(2)
    shown = reconstruction_ids(tokenizer, qwen.image_tokens(), 256)
    rows = [shown, generation_ids(tokenizer, CAPTIONS[0], 256), shown]
    return *pad(rows, token_id(tokenizer, PAD)), *qwen.image_inputs(images)


def test_language_model_refuses_images_that_do_not_fit():
    match = "vlm image_size 56 is not a multiple of 16, which is patch_size 8 x"
    with pytest.raises(UserError, match=match):
        QwenVL("", QwenText(), QwenVision(patch_size=8), image_size=56)


def test_condition_on_images_from_a_cached_prompt_is_that_of_the_whole_pass(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    start, pull = torch.randn(4, 64), torch.randn(3, 4, 64)
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        queries = start.clone().requires_grad_()
        states = qwen.condition(ids, mask, queries, patches, grids).hidden_states
        (states * pull).sum().backward()
        results[trains] = states.detach(), queries.grad
    assert all(p.grad is not None for p in qwen.model.model.visual.parameters())
    qwen.zero_grad()
    assert torch.allclose(results[False][0], results[True][0], atol=1e-5)
    assert relative(results[False][1], results[True][1]) <= 1e-5
    # the same words with another image are another condition
    assert relative(results[True][0][0], results[True][0][2]) > 1e-3


def test_images_in_a_batch_of_prompts_stay_with_their_prompt(qwen):
    qwen.requires_grad_(False)
    ids, mask, patches, grids = mixed_prompts(qwen)
    queries = torch.randn(4, 64)
    together = qwen.condition(ids, mask, queries, patches, grids).hidden_states
    own = len(patches) // 2
    inputs = [(patches[:own], grids[:1]), (None, None), (patches[own:], grids[1:])]
    for i, images in enumerate(inputs):
        length = int(mask[i].sum())
        alone = qwen.condition(ids[i : i + 1, :length], mask[i : i + 1, :length], queries, *images)
        assert torch.allclose(together[i], alone.hidden_states[0], atol=1e-5)
    twice = qwen.condition(ids[[0, 0]], mask[[0, 0]], queries, patches, grids).hidden_states
    assert torch.allclose(twice, together[[0, 2]], atol=1e-5)  # equal ids, unequal images


def test_condition_on_an_image_has_one_dimensional_positions(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    with torch.no_grad():
        embeds = qwen.embed(ids[:1, :length], patches[: len(patches) // 2], grids[:1])
        expected = qwen.model.model.language_model(
            inputs_embeds=torch.cat([embeds, queries[None]], 1)
        ).last_hidden_state[:, length:]
        ours = qwen.condition(ids, mask, queries, patches, grids).hidden_states[:1]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_condition_on_an_image_may_have_positions_by_row_and_column(qwen, monkeypatch):
    ids, mask, patches, grids = mixed_prompts(qwen)
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    line = qwen.condition(ids, mask, queries, patches, grids).hidden_states
    monkeypatch.setattr(qwen, "image_positions", "grid")
    image = (ids[0] == qwen.vocabulary.image_pad).nonzero().flatten()
    first, side = int(image[0]), 3
    assert len(image) == side * side
    # text before it counts on; it takes as many positions as it has rows, and so does what follows
    own = torch.arange(length + 4).expand(3, -1).clone()
    own[:, image] = first
    own[1, image] += torch.arange(side * side) // side
    own[2, image] += torch.arange(side * side) % side
    own[:, first + side * side :] -= side * side - side
    with torch.no_grad():
        embeds = qwen.embed(ids[:1, :length], patches[: len(patches) // 2], grids[:1])
        expected = qwen.model.model.language_model(
            inputs_embeds=torch.cat([embeds, queries[None]], 1), position_ids=own[:, None]
        ).last_hidden_state[:, length:]
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        results[trains] = qwen.condition(
            ids, mask, queries, patches, grids, num_shared_prefix_tokens=2
        ).hidden_states
        assert torch.allclose(results[trains][:1], expected, atol=1e-5)
    assert torch.allclose(results[True], results[False], atol=1e-5)
    assert torch.allclose(results[False][1], line[1], atol=1e-5)  # a prompt without an image
    assert relative(results[False][0], line[0]) > 1e-3


def test_images_without_a_place_in_the_prompt_are_refused(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    with pytest.raises(UserError, match="18 tokens, the prompts hold 9 placeholders"):
        qwen.condition(ids[:1], mask[:1], torch.randn(4, 64), patches, grids)


@pytest.mark.parametrize("kind", ["captions", "nothing in common", "all the same"])
def test_condition_from_a_cached_prompt_is_that_of_the_whole_pass(qwen, kind):
    ids, mask = prompts(qwen.tokenizer, kind)
    start = torch.randn(4, 64)
    pull = torch.randn(3, 4, 64)
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        queries = start.clone().requires_grad_()
        states = qwen.condition(ids, mask, queries).hidden_states
        (states * pull).sum().backward()
        results[trains] = states.detach(), queries.grad
    qwen.zero_grad()
    whole, cached = results[True], results[False]
    assert whole[0].shape == (3, 4, 64)
    assert torch.allclose(cached[0], whole[0], atol=1e-5)
    assert relative(cached[1], whole[1]) <= 1e-5


def test_padding_does_not_change_the_condition(qwen):
    qwen.requires_grad_(False)
    ids, mask = prompts(qwen.tokenizer, "captions")
    queries = torch.randn(4, 64)
    together = qwen.condition(ids, mask, queries).hidden_states
    for i in range(3):
        length = int(mask[i].sum())
        alone = qwen.condition(
            ids[i : i + 1, :length], mask[i : i + 1, :length], queries
        ).hidden_states
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    longer = nn.functional.pad(ids, (0, 7)), nn.functional.pad(mask, (0, 7))
    assert torch.allclose(qwen.condition(*longer, queries).hidden_states, together, atol=1e-5)


def test_condition_equals_the_hidden_states_of_transformers(qwen):
    ids, mask = prompts(qwen.tokenizer, "captions")
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    language_model = qwen.model.model.language_model
    embeds = torch.cat([language_model.embed_tokens(ids[:1, :length]), queries[None]], 1)
    with torch.no_grad():
        expected = language_model(inputs_embeds=embeds).last_hidden_state[:, length:]
        ours = qwen.condition(ids, mask, queries).hidden_states[:1]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_lm_loss_is_transformers_own(qwen, samples):
    batch = batches(UnderstandingModule(qwen, 256), samples, IMAGE_TO_TEXT, range(6))
    assert 0 < len(batch.image_grid_thw) < 6  # some without image
    with torch.no_grad():
        expected = qwen.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            pixel_values=batch.understanding_pixels,
            image_grid_thw=batch.image_grid_thw,
            mm_token_type_ids=(batch.input_ids == qwen.model.config.image_token_id).int(),
        ).loss
        assert qwen.lm_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("seen", [True, False])
def test_answers_of_a_batch_are_those_one_at_a_time(seen, samples):
    qwen = built(vlm(initializer_range=0.3), seed=3).eval()
    tokenizer = qwen.tokenizer
    questions = ["what colour is it?", "how many shapes are there in this image?", "where?"]
    images = drawn(3)
    rows = [
        conversation_ids(tokenizer, [(q, None)], 256, qwen.image_tokens() if seen else 0)[0]
        for q in questions
    ]

    def answers(numbers):
        ids, mask = pad([rows[n] for n in numbers], token_id(tokenizer, PAD), left=True)
        patches, grids = qwen.image_inputs(images[numbers]) if seen else (None, None)
        return qwen.generate_text(ids, mask, patches, grids, max_new_tokens=8)

    together = answers([0, 1, 2])
    assert 1 <= together.shape[1] <= 8
    for n in range(3):
        alone = answers([n])[0]
        assert torch.equal(together[n, : len(alone)], alone)
        assert set(together[n, len(alone) :].tolist()) <= {token_id(tokenizer, PAD)}


def test_image_tokens_are_as_many_as_the_tower_makes(qwen):
    patches, grids = qwen.image_inputs(drawn(2))
    assert grids.tolist() == [[1, 6, 6]] * 2
    assert len(patches) // 4 == 2 * qwen.image_tokens() == 18


def test_reading_images_depends_on_the_images(qwen, samples):
    batch = batches(UnderstandingModule(qwen, 256), samples, IMAGE_TO_TEXT, range(6))
    with torch.no_grad():
        before = qwen.lm_loss(batch)
        batch.understanding_pixels = batch.understanding_pixels.flip(0)
        assert qwen.lm_loss(batch) != before


# --- learned places of tokens ---------------------------------------------------------------------


def test_learned_places_tell_equal_tokens_apart():
    blank = torch.full((2, 3, 48, 48), 128, dtype=torch.uint8)
    for deviation, apart in ((0.0, False), (1.0, True)):
        model = built(vlm(position_std=deviation)).eval()
        with torch.no_grad():
            first, second = model.image_features(*model.image_inputs(blank)).chunk(2)
        assert relative(first, second) < 1e-5  # the places begin anew in each image
        assert (relative(first, first[:1].expand_as(first)) > 1e-2) == apart


def test_learned_places_add_two_tensors_and_change_no_other_draw():
    plain, placed = (built(vlm(position_std=std)).state_dict() for std in (0.0, 1.0))
    added = {f"model.model.visual.merger.{name}" for name in ("norm.weight", "position")}
    assert placed.keys() - plain.keys() == added
    assert all(torch.equal(plain[name], placed[name]) for name in plain)


def test_places_are_as_large_as_what_the_tower_says():
    model = built(vlm(position_std=1.0)).eval()
    merger = model.model.model.visual.merger
    torch.nn.init.normal_(merger.mlp[2].weight, std=10.0)  # as training leaves it
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.image_features(*model.image_inputs(images)).unflatten(0, (2, -1))
    said = (tokens - merger.position).square().mean().sqrt()
    assert 0.9 < said < 1.1 and 0.8 < merger.position.square().mean().sqrt() < 1.2


def test_learned_places_serve_answers_and_a_rank_without_images():
    model = built(vlm(position_std=1.0)).eval()
    ids, mask, patches, grids = mixed_prompts(model)
    before = model.generate_text(ids, mask, patches, grids, max_new_tokens=3)
    assert before.shape == (3, 3)
    blank, grid = model.patches.blank(torch.device("cpu"))
    assert len(blank) == 4 * len(model.model.model.visual.merger.position) == int(grid.prod())


def test_learned_places_need_images_of_one_size():
    with pytest.raises(UserError, match="position_std .* max_pixels"):
        vlm(min_pixels=256, max_pixels=4096, position_std=1.0)
