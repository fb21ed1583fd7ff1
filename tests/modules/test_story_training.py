"""All images of a conversation in one pass: the same as each turn as a prompt of its own."""

import io
import json

import builders
import numpy as np
import pytest
import tar_shards
import torch
from edit_models import edit_model, learned
from PIL import Image

from triptych.data_modules import Collator, ShapesDataModule, ShardFolder, TaskDataset
from triptych.interfaces import INTERLEAVED_IMAGES, TEXT_TO_IMAGE, TURN, Batch
from triptych.modules import GenerationModule
from triptych.prompts import IMAGE_PAD, START_OF_IMAGE, token_id
from triptych.utils.errors import UserError

USER = {"role": "user", "content": "now"}
TALKS = [
    # draw, edit, answer, edit
    [
        {"role": "user", "content": "draw a red circle"},
        {"role": "assistant", "content": [{"image": "0.png"}]},
        {"role": "user", "content": "make it blue"},
        {"role": "assistant", "content": ["here", {"image": "1.png"}, "done"]},
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "remove it"},
        {"role": "assistant", "content": [{"image": "2.png"}]},
        USER,
        {"role": "assistant", "content": "a text after the last image"},
    ],
    # an image of the user first
    [
        {"role": "user", "content": [{"image": "0.png"}, "make it large"]},
        {"role": "assistant", "content": [{"image": "1.png"}]},
    ],
]


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    members = []
    for key, talk in zip("ab", TALKS, strict=True):
        names = sorted({p["image"] for m in talk for p in m["content"] if isinstance(p, dict)})
        members += [(f"{key}.{name}", png(ord(key) + int(name[0]))) for name in names]
        members.append((f"{key}.json", json.dumps({"messages": talk}).encode()))
    tar_shards.write(folder / "a.tar", members)
    return TaskDataset(ShardFolder(folder).open(), INTERLEAVED_IMAGES)


@pytest.fixture(scope="module")
def captions(shapes_folder):
    return TaskDataset(ShardFolder(shapes_folder / "eval").open(), TEXT_TO_IMAGE)


def batch_of(model, datasets, places, samples=None):
    collate = Collator(datasets, model.preprocessing())
    return collate(0, places, samples or range(len(places)))


def rows_alone(batch, tokenizer):
    """Each row of a batch as a batch of its own, whose prompt ends at the row's `[IMG]`."""
    pad = token_id(tokenizer, IMAGE_PAD)
    sizes = batch.image_grid_thw.prod(1).tolist()
    patches = batch.understanding_pixels.split(sizes)
    groups = batch.query_places.shape[1]
    source = 0
    for row, flat in enumerate(batch.query_rows.tolist()):
        prompt, place = divmod(flat, groups)[0], int(batch.query_places.flatten()[flat])
        ids = batch.input_ids[prompt : prompt + 1, : place + 1]
        assert int(ids[0, -1]) == token_id(tokenizer, START_OF_IMAGE)
        before = int((batch.input_ids[:prompt] == pad).sum()) // 9
        number = int((ids == pad).sum()) // 9
        seen = slice(before, before + number)
        alone = Batch(
            batch.objective,
            batch.keys[row : row + 1],
            0,
            batch.sample_ids[row : row + 1],
            ids,
            torch.ones_like(ids),
            understanding_pixels=torch.cat(patches[seen]) if number else None,
            image_grid_thw=batch.image_grid_thw[seen] if number else None,
            target_pixels=batch.target_pixels[row : row + 1],
        )
        if batch.has_source is not None and batch.has_source[row]:
            alone.source_pixels = batch.source_pixels[source : source + 1]
            alone.has_source = torch.ones(1, dtype=torch.bool)
            source += 1
        yield alone


def gradients(module):
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def model_of(weights, positions, joint):
    model = edit_model("joint" if joint else "stage2", weights=weights)
    model.understanding.vlm.image_positions = positions
    return learned(model)


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("positions", ["line", "grid"])
def test_one_pass_is_each_turn_as_a_prompt_of_its_own(weights, stories, captions, positions, joint):
    model = model_of(weights, positions, joint)
    batch = batch_of(model, [stories, captions], [(0, 0), (1, 0), (0, 1)], [5, 6, 7])
    assert batch.sample_ids.tolist() == [5, 5 + TURN, 5 + 2 * TURN, 6, 7]
    assert len(batch) == 5 == batch.elements and batch.query_places.shape == (3, 3)
    rows = list(rows_alone(batch, model.understanding.vlm.tokenizer))
    generation: GenerationModule = model.generation
    with torch.no_grad():
        together = generation.condition_of(batch).hidden_states
        apart = torch.cat([generation.condition_of(row).hidden_states for row in rows])
    assert together.shape == (5, 4, 64)
    assert torch.allclose(together, apart, atol=2e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)

    loss, _ = model.step(batch)
    loss.backward()
    whole = gradients(model)
    model.zero_grad()
    losses = [model.step(row)[0] for row in rows]
    (sum(losses) / len(losses)).backward()
    assert loss.item() == pytest.approx(sum(each.item() for each in losses) / len(losses), rel=1e-5)
    alone = gradients(model)
    assert whole.keys() == alone.keys() and "generation.queries" in whole
    assert joint == any(name.startswith("understanding") for name in whole)
    for name, gradient in alone.items():
        assert torch.allclose(whole[name], gradient, atol=1e-5 + 1e-3 * float(gradient.abs().max()))


def test_the_frozen_prompt_is_computed_once(weights, stories, monkeypatch):
    """The layers see each token of the conversation once, and four queries for each image."""
    model = model_of(weights, "line", joint=False)
    batch = batch_of(model, [stories], [(0, 0)])
    layer = model.understanding.vlm.model.model.language_model.layers[0]
    seen, forward = [], layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda states, **o: seen.append(states.shape[1]) or forward(states, **o)
    )
    model.generation.condition_of(batch)
    assert sum(seen) == batch.input_ids.shape[1] + 3 * 4


def test_each_image_has_the_one_before_it_as_source(weights, stories):
    model = model_of(weights, "line", joint=False)
    batch = batch_of(model, [stories], [(0, 0), (0, 1)])
    assert batch.has_source.tolist() == [False, True, True, True] and batch.may_have_source
    first = batch.target_pixels[:2]
    assert torch.equal(batch.source_pixels[:2], first)  # of images 1 and 2
    user = torch.from_numpy(np.array(Image.open(io.BytesIO(png(ord("b")))))).permute(2, 0, 1)
    assert torch.equal(batch.source_pixels[2], user)


def test_the_prompt_ends_at_the_last_image(weights, stories, tokenizer):
    model = model_of(weights, "line", joint=False)
    batch = batch_of(model, [stories], [(0, 0)])
    text = tokenizer.decode(batch.input_ids[0])
    assert text.endswith("remove it<|im_end|>\n<|im_start|>assistant\n[IMG]")
    assert len(batch.image_grid_thw) == 2 and len(batch.target_pixels) == 3


def test_draws_belong_to_the_sample_and_the_turn(weights, stories):
    model = model_of(weights, "line", joint=False)
    one = batch_of(model, [stories], [(0, 0), (0, 1)], [5, 9])
    other = batch_of(model, [stories], [(0, 1), (0, 0)], [9, 5])
    repeats = model.generation.flow.num_noise_samples
    noise, moved = one.draws["noise"], other.draws["noise"]
    assert torch.equal(noise[: 3 * repeats], moved[repeats:])
    assert torch.equal(noise[3 * repeats :], moved[:repeats])
    assert len({tuple(row.flatten()[:4].tolist()) for row in noise}) == len(noise)


def test_batches_without_stories_are_as_before(weights, captions):
    model = model_of(weights, "line", joint=False)
    batch = batch_of(model, [captions], [(0, 0), (0, 1)])
    assert batch.query_places is None and batch.query_rows is None
    assert batch.sample_ids.tolist() == [0, 1]


@pytest.mark.slow
def test_a_whole_run_of_captions_and_stories_takes_a_step(weights, tmp_path):
    model = model_of(weights, "grid", joint=False)
    data = ShapesDataModule(
        str(tmp_path / "shapes"), images=16, stories_ratio=0.5, batch_size=4, num_val_samples=8
    )
    assert data.weights("image_generation") == {"text_to_image": 0.5, "interleaved_images": 0.5}
    data.prepare_data()
    data.connect(model.preprocessing())
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert sum(len(batch.input_ids) for batch in batches) == 8 < sum(map(len, batches))
    for batch in batches:
        assert not batch.dropped_samples
        loss, _ = model.step(batch)
        assert loss.isfinite()
    levels = model.loss_at_timesteps(batches[0], [0.5, 1.0])
    assert levels.isfinite().all()
    contents = data.batch_contents()
    assert contents.shows_images and contents.has_sources and not contents.has_features


def test_a_story_without_an_image_to_make_is_a_bad_sample(weights, stories, tmp_path):
    talk = [{"role": "user", "content": [{"image": "0.png"}, "what?"]}]
    talk.append({"role": "assistant", "content": "a circle"})
    members = [("c.0.png", png(0)), ("c.json", json.dumps({"messages": talk}).encode())]
    tar_shards.write(tmp_path / "a.tar", members)
    words = TaskDataset(ShardFolder(tmp_path).open(), INTERLEAVED_IMAGES)
    model = model_of(weights, "line", joint=False)
    batch = batch_of(model, [words, stories], [(0, 0), (1, 1)])
    assert batch.dropped_samples == [("c", "messages without an image to make")]
    assert batch.keys == ["b", "b"] and batch.sample_ids.tolist() == [0, 1]


def test_a_stage_that_reads_no_prompts_refuses_conversations(stories, weights):
    decoder = builders.unified("decoder", weights=weights).decoding.preprocessing()
    with pytest.raises(UserError, match="leave it out of the data"):
        Collator([stories], decoder)
