"""Edits of the shapes world: exact instructions, disjoint splits, shards for training."""

import json
import re
from collections import Counter

import numpy
import pytest
import webdataset
from PIL import Image

from triptych.data_modules import EditsDataModule, ShardFolder
from triptych.evaluation.shapes.common import ImageOptions
from triptych.evaluation.shapes.edit_eval import edit_for, edits
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.pipeline import UnifiedPipeline
from triptych.shapes_world.captions import is_evaluation_scene
from triptych.shapes_world.checker import check, satisfies
from triptych.shapes_world.edits import EDITS, refer, sample_edit
from triptych.shapes_world.shards import ensure_edits, make_edit, make_edit_sample, write_shards
from triptych.shapes_world.world import HELD_OUT_PAIRS, PLACES, Scene, Shape, draw
from triptych.utils.errors import UserError

EACH = 60


@pytest.fixture(scope="module")
def drawn():
    """60 training edits of each kind."""
    rng = numpy.random.default_rng(0)
    return [sample_edit(rng, kind) for _ in range(EACH) for kind in EDITS]


def test_the_result_is_right_and_the_source_is_not(drawn):
    for edit in drawn:
        assert check(draw(edit.target), edit.request), edit
        assert not satisfies(edit.source, edit.request), edit


def test_one_shape_changes_in_one_way_and_all_else_stays(drawn):
    for edit in drawn:
        before, after = set(edit.source.shapes), set(edit.target.shapes)
        gone, new = before - after, after - before
        assert edit.target.background == edit.source.background
        assert (len(gone), len(new)) == {"remove": (1, 0), "add": (0, 1)}.get(edit.kind, (1, 1))
        if gone and new:
            (old,), (made,) = gone, new
            changed = {name for name in vars(old) if getattr(old, name) != getattr(made, name)}
            expected = {"recolour": {"colour"}, "reshape": {"kind"}, "resize": {"size"}}
            assert changed <= expected.get(edit.kind, {"row", "column"})


def test_a_result_with_anything_else_changed_is_wrong(drawn):
    for edit in drawn[: 4 * len(EDITS)]:
        other = {"white": "black", "black": "grey", "grey": "white"}[edit.target.background]
        assert not satisfies(Scene(edit.target.shapes, other), edit.request)
        for number in range(len(edit.target.shapes)):
            left = edit.target.shapes[:number] + edit.target.shapes[number + 1 :]
            assert not satisfies(Scene(left, edit.target.background), edit.request)


def test_a_name_means_one_shape_of_its_scene():
    rng = numpy.random.default_rng(0)
    red, blue = Shape("circle", "red", "large", 0, 0), Shape("circle", "blue", "large", 1, 2)
    twin = Shape("circle", "red", "large", 2, 2)
    two, three = Scene((red, blue), "white"), Scene((red, blue, twin), "white")
    assert {refer(two, red, rng) for _ in range(20)} == {"the red circle"}
    assert refer(three, red, rng) == "the large red circle at the top left"
    assert refer(three, blue, rng) == "the blue circle"
    alone = {refer(Scene((blue,), "white"), blue, rng) for _ in range(50)}
    assert alone == {"the circle", "the blue circle", "the large circle"}


def test_instructions_name_shapes_that_are_there_once(drawn):
    for edit in drawn:
        places = "|".join(sorted(PLACES, key=len, reverse=True))
        found = re.search(
            rf"the (small |large )?(\w+ )?(circle|square|triangle|cross)(?: at the ({places}))?",
            edit.instruction,
        )
        if edit.kind == "add" and not found:
            continue  # at a place
        size, colour, kind, place = (part and part.strip() for part in found.groups())
        meant = [
            shape
            for shape in edit.source.shapes
            if shape.kind == kind
            and size in (None, shape.size)
            and colour in (None, shape.colour)
            and place in (None, shape.place)
        ]
        assert len(meant) == 1, edit
        if edit.kind != "add":
            assert meant[0] not in edit.target.shapes


def test_any_place_on_the_named_side_is_right(drawn):
    beside = [edit for edit in drawn if edit.request.relation]
    assert len(beside) >= 10
    for edit in beside:
        (new,) = set(edit.target.shapes) - set(edit.source.shapes)
        right = [
            place
            for place in range(9)
            if all((s.row, s.column) != divmod(place, 3) for s in edit.source.shapes)
            and satisfies(
                Scene(
                    (*edit.source.shapes, Shape(new.kind, new.colour, new.size, *divmod(place, 3))),
                    edit.source.background,
                ),
                edit.request,
            )
        ]
        assert 3 * new.row + new.column in right and len(right) < 7


def test_no_scene_of_an_evaluation_edit_is_in_training(drawn):
    held = [make_edit("eval", index, 0) for index in range(24)]
    assert Counter(edit.kind for edit in held) == dict.fromkeys(EDITS, 4)
    for drawn_of, kept in ((drawn, False), (held, True)):
        scenes = [scene for edit in drawn_of for scene in (edit.source, edit.target)]
        assert all(is_evaluation_scene(scene) == kept for scene in scenes)
        shown = {(shape.colour, shape.kind) for scene in scenes for shape in scene.shapes}
        assert shown.isdisjoint(HELD_OUT_PAIRS)


def test_unknown_edits_are_refused():
    rng = numpy.random.default_rng(0)
    for kind, split in (("rotate", "train"), ("move", "unseen")):
        with pytest.raises(ValueError, match=kind):
            sample_edit(rng, kind, split)


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensure_edits(tmp_path_factory.mktemp("world") / "edits", train=24, evaluation=12)


def test_shards_hold_both_images_and_the_instruction(folder):
    rows = list(
        webdataset.WebDataset(
            sorted(map(str, (folder / "train").glob("*.tar"))), shardshuffle=False
        )
    )
    assert len(rows) == 24
    for index, row in enumerate(rows):
        edit = make_edit("train", index, 0)
        assert row["txt"].decode() == edit.instruction
        assert Scene.from_dict(json.loads(row["json"])["source"]) == edit.source
        assert {"source.jpg", "jpg"} <= set(row) and row["jpg"] == make_edit_sample(
            "train", index, 0
        )["jpg"]
    source = ShardFolder(folder / "eval").open()
    first = make_edit("eval", 0, 0)
    assert check(numpy.asarray(source.image(0)), first.request)
    assert not check(numpy.asarray(source.image(0, "source")), first.request)


def test_edits_are_written_once_and_only_into_their_folder(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert ensure_edits(folder, train=24, evaluation=12) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    with pytest.raises(ValueError, match="another shapes data set"):
        ensure_edits(folder, train=25, evaluation=12)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a shapes data set"):
        ensure_edits(tmp_path, train=6, evaluation=6)


def test_captions_and_edits_come_in_their_shares(tmp_path):
    data = EditsDataModule(str(tmp_path / "shapes"), str(tmp_path / "edits"), share=0.25)
    assert data.weights("image_generation") == {"captions": 0.75, "edits": 0.25}
    tasks = {name: each.task for name, each in data.datasets.items()}
    assert tasks == {"captions": "text_to_image", "edits": "image_to_image"}
    for shares in ({"share": 0}, {"share": 1}, {"share": 0.6, "reconstructions": 0.4}):
        with pytest.raises(UserError, match="share"):
            EditsDataModule(**shares)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a shapes data set"):
        EditsDataModule(str(tmp_path)).prepare_data()


def test_reconstructions_and_stories_join_captions_and_edits(tmp_path):
    data = EditsDataModule(
        str(tmp_path), str(tmp_path / "edits"), share=0.5, reconstructions=0.25, stories_ratio=0.2
    )
    weights = {"captions": 0.2, "edits": 0.4, "reconstructions": 0.2, "interleaved_images": 0.2}
    assert data.weights("image_generation") == pytest.approx(weights)
    again = data.datasets["reconstructions"]
    assert again.task == "image_to_image" and again.source.sources == [tmp_path / "train"]


# --- the model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    """The tiny preset as the recipe of edits sets it."""
    grid = "--model.understanding.init_args.vlm.init_args.image_positions=grid"
    return UnifiedPipeline.from_pretrained("tiny", overrides=[grid])


def test_a_batch_of_captions_and_edits_is_one_step(pipe, folder, tmp_path):
    for split in ("train", "eval"):
        write_shards(tmp_path / split, split, 8, seed=0)
    data = EditsDataModule(str(tmp_path), str(folder), batch_size=16)
    data.connect(pipe.model.preprocessing())
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert len(batch.image_grid_thw) == 8 == len(batch) // 2
    model = pipe.model
    model.generation.requires_grad_(True)
    loss, _ = model.generation.step(batch)
    loss.backward()
    pull = model.generation.queries.grad.abs().sum()
    model.generation.zero_grad()
    model.generation.requires_grad_(False)
    assert 0 < loss < 1 and pull > 0


def test_edits_are_scored_on_images_of_the_pipeline(pipe):
    asked = edits(3)
    results = edit_for(
        pipe.model, edits(3), ImageOptions(config=GenerationConfig(num_inference_steps=2))
    )
    sources = [Image.fromarray(draw(edit.source)) for edit in asked]
    made = pipe.edit(
        sources, prompt=[edit.instruction for edit in asked], seed=0, num_inference_steps=2
    ).images
    assert numpy.array_equal(results, numpy.stack([numpy.asarray(image) for image in made]))
    others = pipe.edit(
        sources, prompt=[edits(4)[3].instruction] * 3, seed=0, num_inference_steps=2
    ).images
    assert all(made[n].tobytes() != others[n].tobytes() for n in range(3))
