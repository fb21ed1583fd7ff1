"""Questions whether an image shows a caption: near misses, the split, the balance."""

import json
from collections import Counter

import numpy
import pytest

from triptych.shapes_world.captions import asks_held_out, is_evaluation, parse
from triptych.shapes_world.checker import satisfies
from triptych.shapes_world.near_misses import QUESTION, near_miss, shows_caption
from triptych.shapes_world.shards import CAPTION_QUESTIONS, make_sample
from triptych.shapes_world.world import Scene, Shape

BEGIN, END = QUESTION.split("{caption}")
PAIR = Scene(
    (Shape("circle", "red", "large", 0, 0), Shape("square", "orange", "small", 1, 2)), "grey"
)


def asked(split, number):
    """(scene, caption, answer) of the caption questions of samples."""
    for index in range(number):
        facts = json.loads(make_sample(split, index, 3)["json"])
        turns = [turn for turn in facts["questions"] if turn[0].startswith(BEGIN)]
        assert len(turns) == CAPTION_QUESTIONS
        for question, answer in turns:
            yield Scene.from_dict(facts["scene"]), question[len(BEGIN) : -len(END)], answer


def test_answers_are_those_of_the_checker_and_half_are_yes():
    answers = Counter()
    for scene, caption, answer in asked("train", 300):
        request = parse(caption)
        assert satisfies(scene, request) == (answer == "yes"), caption
        assert not caption.endswith(".")
        answers[answer, request.task] += 1
    yes = sum(n for (answer, _), n in answers.items() if answer == "yes")
    assert abs(yes / answers.total() - 0.5) < 0.05
    tasks = {task for _, task in answers}
    assert tasks == {
        *("single_object", "two_object", "counting", "colors", "position", "color_attribution"),
        "description",
    }
    # the answer does not follow from the kind of caption
    for task in tasks:
        assert 0.3 < answers["yes", task] / (answers["yes", task] + answers["no", task]) < 0.7


def test_training_never_names_a_held_out_pair_or_an_evaluation_caption():
    for _, caption, _ in asked("train", 300):
        assert not asks_held_out(parse(caption)) and not is_evaluation(parse(caption))


@pytest.mark.parametrize("split", ["eval", "unseen", "instruct"])
def test_other_splits_have_them_as_well(split):
    assert sum(1 for _ in asked(split, 60)) == 60 * CAPTION_QUESTIONS


def differing(miss, request):
    """Names of what differs between requests of two shapes."""
    names = ("kind", "colour", "size", "count", "place")
    pairs = [*zip(miss.wanted, request.wanted, strict=True)]
    wanted = [n for n in names for one, other in pairs if getattr(one, n) != getattr(other, n)]
    return wanted + [
        n for n in ("relation", "background") if getattr(miss, n) != getattr(request, n)
    ]


def test_a_near_miss_differs_in_one_thing():
    request = parse("a red circle left of an orange square on a grey background")
    assert satisfies(PAIR, request)
    rng, differences = numpy.random.default_rng(0), Counter()
    for _ in range(400):
        miss = near_miss(PAIR, request, rng)
        assert not satisfies(PAIR, miss)  # "above" is true of it as well
        differences[tuple(differing(miss, request))] += 1
    assert set(differences) == {
        *(("kind",), ("colour",), ("relation",), ("background",)),
        ("colour", "colour"),  # swapped
    }
    assert min(differences.values()) > 40


def test_counts_are_missed_by_another_number():
    three = Scene(
        tuple(Shape("cross", "green", "small", 0, column) for column in range(3)), "white"
    )
    request, rng = parse("three crosses"), numpy.random.default_rng(0)
    missed = [near_miss(three, request, rng).wanted[0] for _ in range(100)]
    assert {each.count for each in missed if each.kind == "cross"} == {1, 2, 4}
    assert {each.kind for each in missed if each.count == 3} == {"circle", "square", "triangle"}


def test_questions_of_an_image_differ():
    request = parse("a red circle left of an orange square")
    for seed in range(50):
        turns = shows_caption(PAIR, request, numpy.random.default_rng(seed), 4)
        assert len({question for question, *_ in turns}) == 4
        assert {kind for *_, kind in turns} == {"caption"}
