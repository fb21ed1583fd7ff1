"""GenEval: verdicts on drawn scenes are right; unscored images are named and counted."""

import json
import shutil

import numpy
import pytest
from geneval_scenes import Pixels, TrueBoxes, scenes
from PIL import Image

from triptych.evaluation import geneval
from triptych.evaluation.geneval.colours import COLOURS, crop
from triptych.evaluation.geneval.detection import OBJECT_NAMES, DetectedObject, box_of
from triptych.evaluation.geneval.layout import write_metadata
from triptych.evaluation.geneval.rules import (
    Rules,
    check,
    intersection_over_union,
    objects_in,
    relations_of,
)
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(folder, its prompt file, the scenes), one image a prompt."""
    folder = tmp_path_factory.mktemp("drawn")
    made = scenes()
    for number, scene in enumerate(made):
        write_metadata(folder / "images", number, scene.entry)
        path = geneval.sample_path(folder / "images", number, 0)
        path.parent.mkdir(parents=True)
        scene.draw()[0].save(path)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(scene.entry) + "\n" for scene in made))
    return folder / "images", prompts, made


def score(folder, prompts, made, **options):
    return geneval.score(
        folder, TrueBoxes(made), Pixels(), prompts=prompts, images_per_prompt=1, **options
    )


def test_every_verdict_on_sixty_drawn_scenes_is_right(drawn):
    report = score(*drawn)
    wrong = [
        (item["key"], item["prompt"], item["note"])
        for item, scene in zip(report.items, drawn[2], strict=True)
        if item["score"] != scene.right
    ]
    assert not wrong
    assert report.scores == dict.fromkeys(
        ("single_object", "two_object", "counting", "colors", "position", "color_attr"), 0.5
    ) | {"overall": 0.5}
    assert report.numbers["counting"] == 10 and report.numbers["overall"] == 60
    assert report.intervals["counting"] == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert report.counts["expected"] == report.counts["scored"] == 60
    assert report.settings["sizes"] == {"200x200": 60}
    assert "true boxes" in report.table() and "not the official" in report.table()
    assert report.to_json() == score(*drawn).to_json()


def test_failed_image_has_a_reason(drawn):
    notes = [item["note"] for item in score(*drawn).items if item["score"] == 0]
    assert len(notes) == 30 and all(notes)
    assert any("wanted, 0 found" in note for note in notes)
    assert any(note.startswith("fewer than") for note in notes)
    assert any("beside neither side of" in note for note in notes)


def test_unscored_images_are_named_and_counted(drawn, tmp_path):
    folder, prompts, made = drawn
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half/00000/samples/0000.png").unlink()
    shutil.rmtree(tmp_path / "half/00001")
    torn = tmp_path / "half/00002/samples/0000.png"
    torn.write_bytes(torn.read_bytes()[:200])
    shutil.copy(folder / "00003/samples/0000.png", tmp_path / "half/00003/samples/0001.png")
    report = score(tmp_path / "half", prompts, made)
    assert report.counts == {
        "expected": 60,
        "scored": 57,
        "missing": 2,
        "unreadable": 1,
        "wrong_size": 0,
        "judge_failed": 0,
        "extra": 1,
    }
    assert report.numbers["single_object"] == 7 and report.numbers["overall"] == 57
    assert report.scores["single_object"] == pytest.approx(3 / 7)  # of 3 right and 4 wrong ones
    left_out = {item["key"]: item for item in report.items if item["state"] != "scored"}
    assert list(left_out) == ["00000/0", "00001/0", "00002/0", "00003/0001.png"]
    assert all("score" not in item and item["note"] for item in left_out.values())


def test_overall_score_needs_every_task(drawn, tmp_path):
    folder, prompts, made = drawn
    shutil.copytree(folder, tmp_path / "half")
    for number in range(10):
        shutil.rmtree(tmp_path / "half" / f"{number:05d}")
    report = score(tmp_path / "half", prompts, made)
    assert "overall" not in report.scores and "single_object" not in report.scores
    assert len(report.scores) == 5 and report.counts["missing"] == 10


def test_bad_input_is_refused_in_one_sentence(drawn, tmp_path):
    folder, prompts, made = drawn
    with pytest.raises(UserError, match="prompts of nowhere|nowhere.*does not exist"):
        score(folder, tmp_path / "nowhere.jsonl", made)
    with pytest.raises(UserError, match="folder of images .*absent does not exist"):
        score(tmp_path / "absent", prompts, made)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of the 60 images"):
        score(tmp_path / "empty", prompts, made)
    others = tmp_path / "others.jsonl"
    others.write_text("".join(reversed(prompts.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match="give the prompt file that the images were made from"):
        score(folder, others, made)
    others.write_text('{"tag": "colors"}\n')
    with pytest.raises(UserError, match="prompt 1 of .* has no include nor prompt"):
        score(folder, others, made)
    others.write_text("a photo of a bench\n")
    with pytest.raises(UserError, match="line 1 of .* is no JSON at line 1"):
        score(folder, others, made)
    detector = TrueBoxes(made)
    detector.classes = frozenset(OBJECT_NAMES) - {"bench"}
    with pytest.raises(UserError, match="does not know bench"):
        geneval.score(folder, detector, Pixels())


def test_the_packaged_prompts_are_the_published_ones():
    entries = geneval.read_prompts()
    tags = [entry["tag"] for entry in entries]
    assert len(entries) == 553
    assert {tag: tags.count(tag) for tag in tags} == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert len(OBJECT_NAMES) == 80
    clauses = [clause for entry in entries for clause in entry["include"]]
    assert {clause["class"] for clause in clauses} <= set(OBJECT_NAMES)
    assert {clause.get("color", "red") for clause in clauses} == set(COLOURS)


# --- rules ----------------------------------------------------------------------------------------


def found(confidence=0.9, box=(0, 0, 10, 10), name="cat"):
    return DetectedObject(name, confidence, box)


def test_detections_are_limited_by_threshold_and_number():
    some = [found(0.3), found(0.31), found(0.9), found(0.95)]
    assert [one.confidence for one in objects_in(some, "colors")["cat"]] == [0.95, 0.9, 0.31]
    assert [one.confidence for one in objects_in(some, "counting")["cat"]] == [0.95]
    assert len(objects_in([found()] * 20, "counting", Rules(counting_confidence=0.5))["cat"]) == 16
    assert objects_in([found(0.1)], "colors") == {}


def test_overlapping_detections_of_one_object_are_merged():
    some = [found(0.9), found(0.8, (1, 0, 11, 10)), found(0.7, (30, 0, 40, 10))]
    assert len(objects_in(some, "colors")["cat"]) == 3  # the published default
    assert len(objects_in(some, "colors", Rules(overlap=0.8))["cat"]) == 2
    assert intersection_over_union(*(one.box for one in some[:2])) == pytest.approx(110 / 132)


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        ((-40, 0, -30, 10), {"left of"}),
        ((40, 0, 50, 10), {"right of"}),
        ((0, -40, 10, -30), {"above"}),
        ((0, 40, 10, 50), {"below"}),
        ((40, 40, 50, 50), {"right of", "below"}),
        ((2, 0, 12, 10), set()),  # the margin is 0.1 * (10 + 10)
        ((3, 0, 13, 10), set()),  # a third of the distance is left: not more than half
        ((5, 0, 15, 10), {"right of"}),  # 3 of 5 are left
        ((0, 0, 10, 10), set()),
    ],
)
def test_positions_are_those_of_centres_beyond_a_margin(box, relations):
    assert relations_of(box, (0, 0, 10, 10)) == relations


def test_only_the_most_confident_detections_get_colours():
    asked = []

    def colours(some):
        asked.extend(one.confidence for one in some)
        return ["red"] * len(some)

    wanted = {"include": [{"class": "cat", "count": 1, "color": "red"}]}
    objects = objects_in([found(0.5), found(0.8)], "colors")
    assert check(objects, wanted, colours) == (True, "")
    assert asked == [0.8]


def test_crop_masks_the_background():
    image = Image.new("RGB", (20, 20), "red")
    mask = numpy.zeros((20, 20), bool)
    mask[5:10, 5:15] = True
    image.paste("blue", (5, 5, 15, 10))
    cut = crop(image, DetectedObject("cat", 0.9, (0, 0, 20, 10), mask))
    assert cut.size == (20, 10)
    assert {rgb for _, rgb in cut.getcolors()} == {(0, 0, 255), (153, 153, 153)}
    assert box_of(mask) == (5, 5, 15, 10)


# --- the libraries' models, in small --------------------------------------------------------------


def test_mask2former_gives_objects_with_masks(tmp_path):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        dim_feedforward=16, num_queries=5, num_labels=80,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    detector = geneval.Mask2Former(tmp_path, floor=0.0)
    objects = detector.detect(Image.new("RGB", (48, 40), "red"))
    assert objects
    for one in objects:
        assert one.name in OBJECT_NAMES and 0 <= one.confidence <= 1
        assert one.mask.shape == (40, 48) and one.mask.dtype == bool
        assert one.box == box_of(one.mask)
    detector.floor = 1.0
    assert detector.detect(Image.new("RGB", (48, 40), "red")) == []

    config.id2label = dict(enumerate(sorted(OBJECT_NAMES)))
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="80 classes in their order"):
        geneval.Mask2Former(tmp_path)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="absent is neither a folder"):
        geneval.Mask2Former(tmp_path / "absent")
