"""Images of one shape, which the caption describes in full, as a share of what is trained."""

import json

import pytest

from triptych.data_modules import EditsDataModule, ShapesDataModule, ShardFolder
from triptych.shapes_world.captions import Request, is_evaluation_scene, parse, request_of
from triptych.shapes_world.shards import ensure_singles, make_single_sample
from triptych.shapes_world.world import SIZES, Scene
from triptych.utils.errors import UserError


def test_a_caption_says_all_about_its_one_shape():
    sizes = set()
    for index in range(200):
        facts = json.loads(make_single_sample("train", index, 0)["json"])
        scene = Scene.from_dict(facts["scene"])
        (shape,) = scene.shapes
        sizes.add(shape.size)
        assert parse(facts["caption"]) == request_of(scene) == Request.from_dict(facts["request"])
        assert not is_evaluation_scene(scene)
    assert sizes == set(SIZES)


def test_shards_hold_the_samples(tmp_path):
    source = ShardFolder(ensure_singles(tmp_path / "singles", train=20) / "train").open()
    assert len(source) == 20
    for number in (0, 19):
        sample = make_single_sample("train", number, 0)
        assert source.caption(number) == sample["txt"].decode()
        assert source.image_bytes(number) == sample["jpg"]


def test_their_share_is_of_the_captions_to_be_drawn(tmp_path):
    folder = str(tmp_path / "shapes")
    both = ["text_to_image", "image_to_text"]
    data = ShapesDataModule(folder, tasks=both, singles_ratio=0.25)
    assert data.weights("image_generation") == {"text_to_image": 0.75, "singles": 0.25}
    assert data.datasets["image_to_text"].weight is None
    assert "singles" not in data.val_datasets
    edits = EditsDataModule(folder, share=0.5, singles_ratio=0.2, stories_ratio=0.5)
    assert edits.weights("image_generation") == pytest.approx(
        {"captions": 0.2, "edits": 0.2, "singles": 0.1, "interleaved_images": 0.5}
    )
    for data in (ShapesDataModule, EditsDataModule):
        with pytest.raises(UserError, match=r"data.singles_ratio is 1.0; give a share"):
            data(folder, singles_ratio=1.0)


def test_they_are_drawn_beside_the_shapes(tmp_path):
    folder = tmp_path / "shapes"
    data = ShapesDataModule(str(folder), images=8, singles_ratio=0.5, batch_size=4)
    data.prepare_data()
    assert len(ShardFolder(tmp_path / "shapes_singles" / "train").open()) == 8
