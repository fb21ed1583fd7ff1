"""The shapes world: the checker is right, the splits are disjoint, and the answers are true."""

import hashlib
import io
import json
import re
import tarfile

import numpy
import pytest
import webdataset
from PIL import Image

from triptych.shapes_world.captions import (
    TASKS,
    UNSEEN_TASKS,
    Request,
    Wanted,
    asks_held_out,
    describe,
    is_evaluation,
    is_evaluation_scene,
    noun_phrase,
    parse,
    request_of,
    sample,
)
from triptych.shapes_world.checker import (
    answer_is_right,
    chance_levels,
    check,
    read,
    satisfies,
    shape_eval,
)
from triptych.shapes_world.questions import (
    MAX_QUESTIONS,
    attribute_questions,
    caption_questions,
    grid_reading,
    parse_reading,
    questions,
)
from triptych.shapes_world.shards import ensure_shapes, make_sample, write_shards
from triptych.shapes_world.world import (
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    PIXELS,
    PLACES,
    Scene,
    Shape,
    draw,
    scene_of,
)

PER_TASK = 300
RED_CIRCLE = Shape("circle", "red", "large", 0, 0)
BLUE_SQUARE = Shape("square", "blue", "small", 1, 2)
TWO = Scene((RED_CIRCLE, BLUE_SQUARE), "black")


@pytest.fixture(scope="module")
def world():
    """(caption, request, scene) of 300 train samples of each task, in turn."""
    rng = numpy.random.default_rng(0)
    return [sample(rng, task) for _ in range(PER_TASK) for task in TASKS]


def through_jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return numpy.asarray(Image.open(buffer))


# --- drawing and reading --------------------------------------------------------------------------


def test_scene_survives_json():
    assert Scene.from_dict(json.loads(json.dumps(TWO.to_dict()))) == TWO
    assert TWO.shapes[1].place == "right"
    assert scene_of([BLUE_SQUARE, RED_CIRCLE], "black") == TWO


def test_checker_reads_every_task_after_jpeg(world):
    images = [through_jpeg(draw(scene)) for _, _, scene in world]
    scores = shape_eval(images, [request for _, request, _ in world])
    assert list(scores) == [*TASKS, "mean"]
    assert min(scores.values()) >= 0.99
    exact = [read(p) == scene for p, (_, _, scene) in zip(images, world, strict=True)]
    assert sum(exact) >= 0.99 * len(exact)
    described = [
        check(image, request_of(scene))
        for image, (_, _, scene) in zip(images[:PER_TASK], world, strict=False)
    ]
    assert sum(described) >= 0.99 * PER_TASK


def test_checker_bears_noise_and_an_even_tint(world):
    rng = numpy.random.default_rng(1)
    requests = [request for _, request, _ in world[:600]]
    clean = [draw(scene).astype(float) for _, _, scene in world[:600]]
    for change in (lambda p: p + rng.normal(0, 8, p.shape), lambda p: 0.93 * p + 0.07 * 128):
        images = [change(p).round().clip(0, 255).astype(numpy.uint8) for p in clean]
        assert shape_eval(images, requests)["mean"] >= 0.95


def test_shuffled_captions_score_low(world):
    images = [draw(scene) for _, _, scene in world[:300]]
    levels = chance_levels(images, [request for _, request, _ in world[:300]])
    assert list(levels) == [*TASKS, "mean"]
    assert max(levels.values()) <= 0.1
    assert 0 < levels["mean"]


def test_garbage_satisfies_nothing(world):
    rng = numpy.random.default_rng(2)
    noise = rng.integers(0, 256, (PIXELS, PIXELS, 1)).repeat(3, axis=2).astype(numpy.uint8)
    grey_noise = rng.normal(128, 40, (PIXELS, PIXELS, 3)).clip(0, 255).astype(numpy.uint8)
    blanks = [numpy.full((PIXELS, PIXELS, 3), c, numpy.uint8) for c in BACKGROUNDS.values()]
    half = ((draw(TWO).astype(int) + draw(Scene((RED_CIRCLE,), "white"))) // 2).astype(numpy.uint8)
    for image in (noise, grey_noise, *blanks, half):
        assert not any(check(image, request) for _, request, _ in world[:60])
    assert read(noise) is None
    assert read(blanks[0]) == Scene((), "white")


def test_checker_rejects_a_stray_blob_and_a_blurred_shape():
    request = parse("a red circle and a blue square")
    image = draw(TWO)
    assert check(image, request)
    stray = image.copy()
    stray[40:44, 40:44] = (215, 30, 35)
    assert not check(stray, request)
    mush = numpy.asarray(Image.fromarray(image).resize((6, 6)).resize((PIXELS, PIXELS)))
    assert not check(mush, request)


def test_checker_refuses_other_images():
    with pytest.raises(ValueError, match="48"):
        read(numpy.zeros((32, 32, 3), numpy.uint8))
    with pytest.raises(ValueError, match="float64"):
        read(numpy.zeros((48, 48, 3)))


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a red circle and a blue square", True),
        ("a blue square and a red circle on a black background", True),
        ("a red circle and a blue square on a white background", False),
        ("a blue circle and a red square", False),
        ("a red circle", False),
        ("a circle and a square", True),
        ("a large circle and a large square", False),
        ("a circle left of a square", True),
        ("a circle above a square", True),
        ("a square below a circle", True),
        ("a circle right of a square", False),
        ("two circles", False),
        ("a red circle at the top left and a square", True),
        ("a red circle at the top and a square", False),
    ],
)
def test_requests_are_exact(caption, right):
    assert satisfies(TWO, parse(caption)) is right
    assert check(draw(TWO), parse(caption)) is right


def test_relation_holds_for_some_pair_of_like_shapes():
    scene = Scene((RED_CIRCLE, Shape("circle", "green", "small", 2, 2)), "grey")
    assert satisfies(scene, parse("a green circle right of a red circle"))
    assert not satisfies(scene, parse("a green circle left of a red circle"))
    assert satisfies(scene, parse("two circles"))
    assert not satisfies(scene, parse("two red circles"))


# --- captions -------------------------------------------------------------------------------------


def test_captions_are_grammatical(world):
    captions = [caption for caption, _, _ in world]
    captions += [
        describe(scene, numpy.random.default_rng(i)) for i, (_, _, scene) in enumerate(world[:300])
    ]
    for caption in captions:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", caption), caption
    assert noun_phrase(Wanted("circle", "orange")) == "an orange circle"
    assert noun_phrase(Wanted("circle", "orange", "small")) == "a small orange circle"
    assert noun_phrase(Wanted("cross", "red", count=3)) == "three red crosses"


def test_captions_mean_their_request(world):
    rng = numpy.random.default_rng(3)
    for caption, request, scene in world:
        assert satisfies(scene, request)
        assert parse(caption) == request
        assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    for _, _, scene in world[:300]:
        assert parse(describe(scene, rng)) == request_of(scene)


def test_parse_knows_its_limits():
    assert parse("A photo of a Red circle to the left of a blue square.") == Request(
        "position", (Wanted("circle", "red"), Wanted("square", "blue")), "left of"
    )
    assert parse("a circle, a square and a cross").total == 3
    for caption in (
        "",
        "a dog",
        "two circle",
        "a circles",
        "five circles",
        "a circle on a sofa",
        "a circle left of a square above a cross",
        "a pink circle",
    ):
        assert parse(caption) is None


# --- splits ---------------------------------------------------------------------------------------


def test_train_and_eval_are_apart(world):
    rng = numpy.random.default_rng(4)
    for _, request, scene in world:
        assert not is_evaluation(request) and not is_evaluation_scene(scene)
        assert not asks_held_out(request) and not asks_held_out(request_of(scene))
    for task in TASKS:
        drawn = [sample(rng, task, "eval") for _ in range(100)]
        assert all(is_evaluation(r) and is_evaluation_scene(s) for _, r, s in drawn)
        assert not any(asks_held_out(request_of(scene)) for _, _, scene in drawn)
        assert len({request for _, request, _ in drawn}) >= 4


def test_unseen_asks_for_held_out_pairs():
    rng = numpy.random.default_rng(5)
    asked = set()
    for task in UNSEEN_TASKS:
        for _ in range(50):
            caption, request, scene = sample(rng, task, "unseen")
            assert asks_held_out(request) and satisfies(scene, request)
            assert parse(caption) == request and request.task == task
            asked |= {(wanted.colour, wanted.kind) for wanted in request.wanted}
    assert asked >= set(HELD_OUT_PAIRS)
    for task, split in (("two_object", "unseen"), ("colors", "test"), ("color", "train")):
        with pytest.raises(ValueError, match=task):
            sample(rng, task, split)


def test_the_split_is_of_the_meaning():
    a, b = Wanted("circle", "green"), Wanted("square", "blue")
    for background in (None, *BACKGROUNDS):
        pairs = [
            (Request("", (a, b), None, background), Request("", (b, a), None, background)),
            (Request("", (a, b), "above", background), Request("", (b, a), "below", background)),
        ]
        assert all(is_evaluation(one) == is_evaluation(other) for one, other in pairs)
    assert not is_evaluation(parse("a circle")) and not is_evaluation(parse("three crosses"))


# --- questions ------------------------------------------------------------------------------------


def all_questions(scene):
    turns = {}
    for seed in range(60):
        rng = numpy.random.default_rng(seed)
        for question, answer, _ in questions(scene, rng, MAX_QUESTIONS):
            assert turns.setdefault(question, answer) == answer
    return turns


def test_questions_about_an_image():
    turns = all_questions(TWO)
    expected = {
        "what colour is the circle?": "red",
        "what shape is blue?": "square",
        "what size is the square?": "small",
        "where is the square?": "right",
        "how many shapes are there?": "two",
        "how many circles are there?": "one",
        "how many crosses are there?": "zero",
        "how many red shapes are there?": "one",
        "what is the background?": "black",
        "is there a red circle?": "yes",
        "is there a blue square?": "yes",
        "is there a green circle?": "no",
        "what is at the top left?": "top left: large red circle",
        "what is at the centre?": "centre: nothing",
        "is the circle left of the square?": "circle top left, square right: yes",
        "is the square left of the circle?": "square right, circle top left: no",
        "is the circle above the square?": "circle top left, square right: yes",
        "is the square above the circle?": "square right, circle top left: no",
    }
    assert {question: turns[question] for question in expected} == expected
    assert not any(f"is there a {c} {k}?" in turns for c, k in HELD_OUT_PAIRS)


def test_questions_are_never_ambiguous():
    level = Scene((RED_CIRCLE, Shape("circle", "red", "small", 0, 2)), "white")
    turns = all_questions(level)
    assert not any("the circle" in question for question in turns)
    assert "what shape is red?" not in turns
    assert turns["how many circles are there?"] == "two"
    row = Scene((RED_CIRCLE, Shape("square", "blue", "small", 0, 2)), "white")
    assert not any("above" in question or "below" in question for question in all_questions(row))
    with pytest.raises(ValueError, match="13"):
        questions(level, numpy.random.default_rng(0), 13)


def test_yes_and_no_are_balanced(world):
    rng = numpy.random.default_rng(6)
    answers = {"existence": [], "relation": []}
    for _, _, scene in world:
        for _, answer, kind in questions(scene, rng, 6):
            if kind in answers:
                answers[kind].append(answer.split(": ")[-1] == "yes")
    for said in answers.values():
        assert abs(numpy.mean(said) - 0.5) < 0.07


def test_practice_repeats_hard_questions_more_often(world):
    hard = {"place", "existence", "content", "relation"}

    def share(mix):
        rng = numpy.random.default_rng(0)
        types = [t[2] for *_, scene in world[:200] for t in questions(scene, rng, 4, mix)]
        return sum(kind in hard for kind in types) / len(types)

    assert share("practice") > share("even") + 0.15


def test_attribute_questions_have_two_kinds_to_choose_from():
    turns = dict(attribute_questions(TWO))
    assert turns["what colour is the circle?"] == "red" and turns["where is the square?"] == "right"
    assert turns["what shape is blue?"] == "square" and len(turns) == 6
    assert turns.items() <= all_questions(TWO).items()
    one_kind = Scene((RED_CIRCLE, Shape("circle", "blue", "small", 0, 2)), "white")
    assert attribute_questions(one_kind) == [grid_reading(one_kind)]


def test_grid_reading():
    question, answer = grid_reading(TWO)
    cells = answer.split(", ")
    assert question == "read the grid" and len(cells) == len(PLACES)
    assert cells[0] == "top left: large red circle" and cells[5] == "right: small blue square"
    assert sum(cell.endswith(": nothing") for cell in cells) == 7


def test_questions_about_a_caption():
    request = parse("a red circle left of a square")
    turns = dict(caption_questions(request, numpy.random.default_rng(0), 100))
    expected = {
        "how many shapes are there?": "two",
        "what is the background?": "any",
        "what shape is first?": "circle",
        "what colour is first?": "red",
        "what colour is second?": "any",
        "what colour is the circle?": "red",
        "what size is first?": "any",
        "what is left of the square?": "a red circle",
        "what is right of the circle?": "a square",
        "how many squares are there?": "one",
        "how many crosses are there?": "zero",
    }
    assert {question: turns[question] for question in expected} == expected
    assert parse_reading(request) == (
        "list the shapes",
        "two shapes: one any red circle anywhere left, one any any square anywhere right. "
        "circle left of square. any background.",
    )
    assert parse_reading(request_of(TWO))[1] == (
        "two shapes: one large red circle top left, one small blue square right. "
        "any relation. black background."
    )
    assert parse_reading(parse("three crosses"))[1] == (
        "three shapes: three any any cross anywhere. any relation. any background."
    )


def test_parse_reading_tells_requests_apart(world):
    readings = {}
    for _, request, _ in world:
        assert readings.setdefault(parse_reading(request)[1], request) == request


def test_answers_are_compared_without_case_and_full_stop():
    assert answer_is_right(" Top  Left.\n", "top left")
    assert not answer_is_right("top", "top left")


def test_vocabulary_is_small():
    words = set()
    for split in ("train", "unseen"):
        for i in range(600):
            facts = json.loads(make_sample(split, i, 0)["json"])
            turns = facts["conversation"] + facts["text_conversation"]
            for text in (
                facts["caption"],
                facts["long_caption"],
                *(t for turn in turns for t in turn),
            ):
                words |= set(re.findall(r"\w+", text))
    assert len(words) < 120
    assert all(word == word.lower() for word in words)


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them open
def test_shards_are_read_back(tmp_path, monkeypatch):
    # a test of streaming may have turned on the mode that opens no local file
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    folder = ensure_shapes(
        tmp_path / "shapes", train=60, evaluation=12, unseen=8, instruct=8, seed=3
    )
    seen = 0
    for split, size in (("train", 60), ("eval", 12), ("unseen", 8)):
        tars = sorted(str(path) for path in (folder / split).iterdir())
        assert tars[0].endswith(f"{split}-00000.tar")
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
        assert [s["__key__"] for s in samples] == [f"{split}{i:08d}" for i in range(size)]
        for s in samples:
            facts = s["json"]
            request, scene = Request.from_dict(facts["request"]), Scene.from_dict(facts["scene"])
            assert check(s["jpg"], request) and read(s["jpg"]) == scene
            assert parse(s["txt"]) == request and facts["caption"] == s["txt"]
            assert parse(facts["long_caption"]) == request_of(scene)
            assert facts["task"] == request.task
            assert len(facts["conversation"]) == 4 and len(facts["text_conversation"]) == 5
            reading = list(grid_reading(Scene.from_dict(facts["scene"])))
            assert reading in (facts["conversation"][0], facts["conversation"][-1])
            assert facts["reading"] == [reading]
            assert len(facts["questions"]) == 17 and reading == facts["questions"][0]
            questions_of_shapes = facts["attribute_questions"]
            assert questions_of_shapes == [reading] or len(questions_of_shapes) >= 4
            assert split == "train" or request.task != "description"
            seen += 1
    assert seen == 80
    with tarfile.open(folder / "train" / "train-00000.tar") as tar:
        assert tar.getnames()[:3] == [f"train00000000.{end}" for end in ("jpg", "json", "txt")]
    assert list(tmp_path.iterdir()) == [folder]


def test_same_seed_same_bytes(tmp_path):
    digests = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_shards(tmp_path / name, "train", 30, seed=seed, samples_per_shard=20)
        tars = sorted((tmp_path / name).iterdir())
        assert [tar.name for tar in tars] == ["train-00000.tar", "train-00001.tar"]
        digests.append(hashlib.sha256(b"".join(tar.read_bytes() for tar in tars)).digest())
    assert digests[0] == digests[1] != digests[2]
    assert make_sample("train", 5, 0)["jpg"] != make_sample("eval", 5, 0)["jpg"]


def test_foreign_folder_is_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a shapes data set"):
        ensure_shapes(tmp_path, train=6, evaluation=6, unseen=4)
    with pytest.raises(ValueError, match="not a shapes data set"):
        write_shards(tmp_path, "train", 6, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_made_data_set_is_reused(tmp_path):
    folder = tmp_path / "100%"
    folder.mkdir()  # an empty folder is fine
    ensure_shapes(folder, train=6, evaluation=6, unseen=4, instruct=6)
    before = (folder / "train" / "train-00000.tar").stat().st_mtime_ns
    ensure_shapes(folder, train=6, evaluation=6, unseen=4, instruct=6)
    assert (folder / "train" / "train-00000.tar").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another shapes data set"):
        ensure_shapes(folder, train=6, evaluation=6, unseen=4, instruct=6, seed=1)


def test_a_failed_writing_leaves_nothing(tmp_path):
    def stop(done):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        ensure_shapes(tmp_path / "shapes", train=6, evaluation=6, unseen=4, progress=stop)
    assert list(tmp_path.iterdir()) == []
