"""Images of one or two shapes whose captions say their sizes, as a share of what is trained."""

import json
from collections import Counter

import pytest

from triptych.data_modules import EditsDataModule, ShapesDataModule, ShardFolder
from triptych.shapes_world.captions import (
    Request,
    is_evaluation,
    is_evaluation_scene,
    parse,
    request_of,
)
from triptych.shapes_world.checker import satisfies
from triptych.shapes_world.shards import ensure_sized, make_sized_sample
from triptych.shapes_world.world import Scene
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def drawn():
    """Captions, requests and scenes of 400 samples."""
    facts = [json.loads(make_sized_sample("train", index, 0)["json"]) for index in range(400)]
    return [
        (each["caption"], Request.from_dict(each["request"]), Scene.from_dict(each["scene"]))
        for each in facts
    ]


def test_a_caption_says_sizes_and_what_its_request_says(drawn):
    for caption, request, scene in drawn:
        parsed = parse(caption)
        assert parsed.wanted == request.wanted and parsed.background == request.background
        assert [w.size for w in request.wanted] == [s.size for s in scene.shapes]
        assert satisfies(scene, request)


def test_captions_lead_from_everything_to_the_size_alone(drawn):
    full = sum(request == request_of(scene) for _, request, scene in drawn)
    bare = sum(
        all(w.colour is w.place is None for w in request.wanted) and request.background is None
        for _, request, _ in drawn
    )
    assert min(full, bare) > 0.25 * len(drawn) and full + bare < 0.9 * len(drawn)


def test_most_pairs_of_two_sizes_begin_with_the_large_one(drawn):
    orders = Counter(tuple(shape.size for shape in scene.shapes) for _, _, scene in drawn)
    assert orders["large", "small"] > 1.5 * orders["small", "large"] > 0
    assert {len(order) for order in orders} == {1, 2}


def test_nothing_of_the_evaluation_is_among_them(drawn):
    for _, request, scene in drawn:
        assert not is_evaluation(request) and not is_evaluation_scene(scene)
    held_out = json.loads(make_sized_sample("eval", 0, 0)["json"])
    assert is_evaluation(Request.from_dict(held_out["request"]))


def test_shards_hold_the_samples(tmp_path):
    source = ShardFolder(ensure_sized(tmp_path / "sized", train=20) / "train").open()
    assert len(source) == 20
    for number in (0, 19):
        sample = make_sized_sample("train", number, 0)
        assert source.caption(number) == sample["txt"].decode()
        assert source.image_bytes(number) == sample["jpg"]


def test_their_share_is_of_the_captions_to_be_drawn(tmp_path):
    folder = str(tmp_path / "shapes")
    both = ["text_to_image", "image_to_text"]
    data = ShapesDataModule(folder, tasks=both, sized_ratio=0.25)
    assert data.weights("image_generation") == {"text_to_image": 0.75, "sized": 0.25}
    assert data.datasets["image_to_text"].weight is None
    assert "sized" not in data.val_datasets
    edits = EditsDataModule(folder, share=0.5, sized_ratio=0.2, stories_ratio=0.5)
    assert edits.weights("image_generation") == pytest.approx(
        {"captions": 0.2, "edits": 0.2, "sized": 0.1, "interleaved_images": 0.5}
    )
    for data in (ShapesDataModule, EditsDataModule):
        with pytest.raises(UserError, match=r"data.sized_ratio is 1.0; give a share"):
            data(folder, sized_ratio=1.0)


def test_they_are_drawn_beside_the_shapes(tmp_path):
    folder = tmp_path / "shapes"
    data = ShapesDataModule(str(folder), images=8, sized_ratio=0.5, batch_size=4)
    data.prepare_data()
    assert len(ShardFolder(tmp_path / "shapes_sized" / "train").open()) == 8
