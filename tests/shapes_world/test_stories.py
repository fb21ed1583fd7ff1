"""Stories of the shapes world: exact meaning of every turn, disjoint splits, shards."""

import json
from collections import Counter

import numpy
import pytest

from triptych.data_modules import ShapesDataModule, ShardFolder
from triptych.data_modules.batching.tasks import text_only_turns
from triptych.prompts import GENERATION_INSTRUCTION
from triptych.shapes_world.captions import is_evaluation_scene
from triptych.shapes_world.checker import check, satisfies
from triptych.shapes_world.shards import ensure_stories, make_story_sample
from triptych.shapes_world.stories import (
    edit_turn,
    messages_of,
    question_turn,
    sample_story,
)
from triptych.shapes_world.world import HELD_OUT_PAIRS, Scene, Shape, draw
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def stories():
    rng = numpy.random.default_rng(0)
    return [sample_story(rng) for _ in range(200)]


def test_every_image_is_right_and_the_one_before_it_is_not(stories):
    for story in stories:
        scenes = [turn.scene for turn in story if turn.scene is not None]
        requests = [turn.request for turn in story if turn.request is not None]
        for number, (scene, request) in enumerate(zip(scenes, requests, strict=True)):
            assert check(draw(scene), request)
            assert number == 0 or not satisfies(scenes[number - 1], request)


def test_a_story_draws_first_and_then_changes_and_asks_in_any_order(stories):
    kinds = [tuple(turn.kind for turn in story) for story in stories]
    assert {each[0] for each in kinds} == {"draw"}
    images = Counter(len(each) - each.count("question") for each in kinds)
    assert set(images) == {2, 3, 4}
    assert {each.count("question") for each in kinds} == {1, 2}
    assert len({each[1] for each in kinds}) == 2  # an edit or a question may come second
    assert any(turn.scene and turn.answer for story in stories for turn in story)


def test_a_question_is_about_the_last_image(stories):
    asked = 0
    for story in stories:
        scene = None
        for turn in story:
            scene = turn.scene or scene
            if turn.answer is not None and turn.prompt.endswith("how many shapes are there?"):
                assert turn.answer == ("zero", "one", "two", "three", "four")[len(scene.shapes)]
                asked += 1
    assert asked > 5


def test_a_turn_that_asks_as_well_leaves_its_image_no_choice(stories):
    for story in stories:
        for turn in story:
            if turn.scene is not None and turn.answer is not None:
                assert turn.request.relation is None
                assert all(wanted.place for wanted in turn.request.wanted)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_scenes_of_a_split_are_its_own(split):
    rng = numpy.random.default_rng(1)
    for story in (sample_story(rng, split) for _ in range(20)):
        for turn in story:
            if turn.scene is not None:
                assert is_evaluation_scene(turn.scene) == (split == "eval")
                assert not {(s.colour, s.kind) for s in turn.scene.shapes} & set(HELD_OUT_PAIRS)


def test_no_turn_is_a_prompt_that_the_texts_of_stage_1_answer_otherwise(stories):
    stem = GENERATION_INSTRUCTION.format(caption="")
    (prompt, _), *_ = text_only_turns("a circle", None)
    assert prompt.startswith(stem)
    assert not any(turn.prompt.startswith(stem) for story in stories for turn in story)


def test_an_image_that_allows_no_edit_has_none():
    rng = numpy.random.default_rng(0)
    assert edit_turn(Scene((), "white"), rng, "eval") is None
    held_out = (Shape("triangle", "red", "large", 0, 0),) * 1
    full = Scene(tuple(Shape("circle", "red", "small", *divmod(n, 3)) for n in range(6)), "white")
    assert edit_turn(full, rng, "eval") is None
    turn = edit_turn(Scene(held_out, "white"), rng, "train")
    assert ("red", "triangle") not in {(s.colour, s.kind) for s in turn.scene.shapes}
    assert question_turn(full, rng).answer


def test_messages_name_the_images_in_order(stories):
    for story in stories[:20]:
        messages = messages_of(story)
        assert [each["role"] for each in messages] == ["user", "assistant"] * len(story)
        parts = [part for each in messages[1::2] for part in each["content"]]
        names = [part["image"] for part in parts if isinstance(part, dict)]
        assert names == [f"{number}.jpg" for number in range(len(names))]
        assert all(each["content"] for each in messages)


def test_shards_hold_the_stories(tmp_path):
    folder = ensure_stories(tmp_path / "stories", train=24, evaluation=8)
    source = ShardFolder(folder / "train").open()
    assert len(source) == 24
    for number in (0, 7, 23):
        facts = json.loads(make_story_sample("train", number, 0)["json"])
        assert source.metadata(number) == facts
        for image, scene in enumerate(facts["scenes"]):
            content = source.named_image_bytes(number, f"{image}.jpg")
            assert content == make_story_sample("train", number, 0)[f"{image}.jpg"]
            assert Scene.from_dict(scene)
    with pytest.raises(ValueError, match="another shapes data set"):
        ensure_stories(folder, train=25, evaluation=8)


def test_stories_have_their_share_of_the_samples(tmp_path):
    folder = str(tmp_path / "shapes")
    data = ShapesDataModule(folder, tasks=["image_to_text"], stories_ratio=0.25)
    assert data.weights("language_modeling") == {"image_to_text": 0.75, "interleaved": 0.25}
    without = ShapesDataModule(folder, tasks=["image_to_text"])
    assert list(without.datasets) == ["image_to_text"]
    assert without.datasets["image_to_text"].weight is None
    with pytest.raises(UserError, match="stories_ratio"):
        ShapesDataModule(folder, stories_ratio=1.0)
