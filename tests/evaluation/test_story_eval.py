"""StoryEval: every turn is judged by what the model really made before it."""

from types import SimpleNamespace

import numpy
import pytest
from oracle_models import Perfect
from PIL import Image

from triptych.evaluation import StoryEval
from triptych.evaluation.shapes.all_scores import ScoringPlan, item_scores, report
from triptych.evaluation.shapes.common import ImageOptions
from triptych.evaluation.shapes.story_eval import (
    TURNS,
    kinds,
    next_turn,
    tell_stories,
    turn_scores,
)
from triptych.prompts import PromptError
from triptych.shapes_world.captions import is_evaluation_scene
from triptych.shapes_world.checker import read
from triptych.shapes_world.world import BACKGROUNDS, Scene, draw
from triptych.utils.errors import UserError

STORIES = 24
OPTIONS = ImageOptions(batch_size=8)


def rights(*arguments):
    """Which turns of each story are correct."""
    return [story.right for story in tell_stories(*arguments)]


class Telling(Perfect):
    """Perfect but for the turns (from 0) in `wrong`, whose answer `spoil` changes."""

    def __init__(self, wrong, spoil):
        super().__init__(STORIES)
        self.wrong, self.spoil = wrong, spoil

    def reply(self, messages):
        content = super().reply(messages)
        place = [message["role"] for message in messages].count("user") - 1
        return self.spoil(content) if place in self.wrong else content


def other_background(content):
    if isinstance(content[0], str):
        return ["no idea"]
    scene = read(numpy.asarray(content[0]))
    other = next(name for name in BACKGROUNDS if name != scene.background)
    return [Image.fromarray(draw(Scene(scene.shapes, other)))]


def columns(right):
    return [[story[place] for story in right] for place in range(TURNS)]


def test_stories_draw_first_and_have_evaluation_scenes():
    reserved = []
    for number in range(4 * STORIES):
        assert kinds(number)[0] == "draw" and len(kinds(number)) == TURNS
        turn = next_turn(number, 0, None)
        assert is_evaluation_scene(turn.scene)
        for place in range(1, TURNS):
            if kinds(number)[place] == "edit":
                reserved.append(is_evaluation_scene(next_turn(number, place, turn.scene).scene))
    assert sum(reserved) > 0.95 * len(reserved)  # a few scenes have no such edit
    assert {kinds(number).count("question") for number in range(STORIES)} == {1, 2}


def test_a_wrong_image_is_one_wrong_turn_and_later_ones_are_about_it():
    """The background is wrong, but the next edits and questions are of the image that is there."""
    right = columns(rights(Telling({0}, other_background), STORIES, OPTIONS))
    assert sum(right[0]) < STORIES  # a caption that names no background allows it
    for place in right[1:]:
        assert all(place)


def test_a_wrong_edit_or_answer_is_one_wrong_turn():
    right = columns(rights(Telling({2}, other_background), STORIES, OPTIONS))
    assert not any(right[2])
    assert all(all(right[place]) for place in (0, 1, 3, 4))


def test_after_an_unclear_image_no_turn_is_right():
    def noise(content):
        pixels = numpy.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=numpy.uint8)
        return [Image.fromarray(pixels)]

    right = rights(Telling({0}, noise), STORIES, OPTIONS)
    assert not any(any(story) for story in right)


@pytest.mark.parametrize(
    "spoil",
    [lambda content: [], lambda content: [*content, *content], lambda content: ["a circle"]],
    ids=["nothing", "twice", "words"],
)
def test_an_answer_is_one_image_or_the_words_and_nothing_else(spoil):
    right = columns(rights(Telling({1}, spoil), STORIES, OPTIONS))
    assert all(right[0]) and not any(right[1])


def test_a_conversation_that_is_too_long_ends_alone():
    class Forgetful(Perfect):
        def converse(self, conversations, **options):
            for place, messages in enumerate(conversations):
                if len(messages) > 4 and messages[0]["content"] == long:
                    error = PromptError("the conversation is too long; shorten it.")
                    error.conversation = place
                    raise error
            return super().converse(conversations, **options)

    long = next_turn(3, 0, None).prompt
    right = rights(Forgetful(STORIES), STORIES, OPTIONS)
    assert right[3] == [True, True, False, False, False]
    assert all(all(story) for number, story in enumerate(right) if number != 3)


def test_batches_and_processes_change_nothing_and_no_seed_comes_twice():
    model, whole = Telling({1}, other_background), Telling({1}, other_background)
    right = rights(model, STORIES, ImageOptions(batch_size=5, seed=2))
    assert right == rights(whole, STORIES, ImageOptions(batch_size=64, seed=2))
    assert sorted(model.seeds) == sorted(whole.seeds)
    assert len(set(model.seeds)) == len(model.seeds) == STORIES * TURNS
    some = rights(model, 4, ImageOptions(seed=2, numbers=range(8, 12)))
    assert some == right[8:12]


def test_scores_are_by_turn_and_by_kind():
    right = [[True, False, True, True, True], [True] * 5]
    scores = turn_scores(right)
    assert (
        scores["turn_2"] == [[0.0], [1.0]] == scores["whole"] and scores["image_1"] == [[1.0]] * 2
    )
    for number in (0, 1):
        asked = kinds(number).count("question")
        assert len(scores["answers"][number]) == asked
        assert len(scores["images"][number]) == TURNS - asked
        assert bool(scores["image_4"][number]) == (asked == 1)
    values = StoryEval(STORIES)(Telling({2}, other_background))
    assert (values["turn_2"], values["turn_3"], values["whole"]) == (1.0, 0.0, 0.0)
    assert values["turn_3_low"] == 0.0 < values["turn_3_high"] < 0.2


def test_the_report_has_the_stories_with_intervals():
    plan = ScoringPlan(num_images=STORIES, batch_size=8)
    model = Telling({4}, other_background)
    scores = report(list(item_scores(model, plan)), plan)
    assert scores.scores["stories/turn_5"] == 0.0 and scores.scores["stories/turn_1"] == 1.0
    low, high = scores.intervals["stories/turn_1"]
    assert low < 1.0 == high and scores.numbers["stories/turn_1"] == STORIES
    images = scores.numbers["stories/images"] + scores.numbers["stories/answers"]
    assert images == STORIES * TURNS and scores.intervals["stories/images"][0] < 1.0
    halves = [list(item_scores(model, plan, (part, 2))) for part in (0, 1)]
    assert report([*halves[1], *halves[0]], plan).scores == scores.scores


def test_images_of_another_size_and_no_stories_are_refused():
    def large(content):
        return [Image.new("RGB", (64, 64))]

    with pytest.raises(UserError, match="makes 64x64"):
        rights(Telling({0}, large), 2, OPTIONS)
    with pytest.raises(UserError, match="0 of them"):
        rights(SimpleNamespace(), 0, OPTIONS)


def test_a_model_that_never_draws_has_no_turn_right(pipe):
    scores = StoryEval(2, batch_size=2)(pipe.model)
    assert 0.0 <= scores["turn_1"] <= 1.0 and set(scores) >= {"turn_5", "answers", "whole"}
