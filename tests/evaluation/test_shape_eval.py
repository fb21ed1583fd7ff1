"""The scores of the shapes world: a perfect model has 1, a shuffled one chance, batches nothing."""

import numpy
import pytest
import torch
from oracle_models import IMAGES, Noise, Perfect, Shuffled

from triptych.evaluation import EditEval, ShapeEval, evaluate_all
from triptych.evaluation.shapes import shape_eval as scoring
from triptych.evaluation.shapes.edit_eval import edit_chance, edits, kept
from triptych.evaluation.statistics import wilson
from triptych.shapes_world.captions import TASKS, UNSEEN_TASKS
from triptych.shapes_world.checker import read
from triptych.shapes_world.edits import EDITS
from triptych.shapes_world.world import CELL, Scene, draw
from triptych.utils.errors import UserError


def test_a_perfect_model_has_full_scores():
    scores = evaluate_all(Perfect(), IMAGES, batch_size=16)
    assert list(scores["shape_eval"]) == [*TASKS, "mean"]
    assert list(scores["shape_eval_unseen"]) == [*UNSEEN_TASKS, "mean"]
    assert set(scores["shape_eval"].values()) == {1.0}
    assert set(scores["shape_eval_unseen"].values()) == {1.0}
    assert scores["reconstruction"] == 1.0
    assert set(scores["question_answering"].values()) == {1.0}
    edited = scores["edits"]
    assert list(edited) == [*EDITS, "mean", "low", "high", "kept"]
    assert {edited[name] for name in (*EDITS, "mean", "high", "kept")} == {1.0}
    assert edited["low"] == wilson(1.0, IMAGES)[0]


def test_a_shuffled_model_is_near_chance():
    scores = evaluate_all(Shuffled(), IMAGES)
    assert scores["shape_eval"]["mean"] < 0.2
    assert scores["reconstruction"] < 0.05
    assert 0.2 < scores["question_answering"]["existence"] < 0.8
    assert scores["question_answering"]["colour"] == 0
    assert scores["edits"]["mean"] == 0.0 == scores["chance"]["edits"]["source"]


def test_chance_is_below_a_perfect_model_and_counts_every_type():
    levels = scoring.chance(IMAGES)
    assert 0 < levels["shape_eval"]["mean"] < 0.2
    assert levels["reconstruction"] < 0.02
    assert 0.2 < levels["question_answering"]["mean"] < 0.6


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_nothing(batch_size):
    model, whole = Noise(), Noise()
    score = ShapeEval(num_images=20, batch_size=batch_size, seed=1)(model)
    assert score == ShapeEval(num_images=20, batch_size=20, seed=1)(whole)
    assert 0 < score["mean"] < 1
    assert model.seeds == whole.seeds and sum(model.sizes) == 20
    assert max(model.sizes) == min(batch_size, 20)


def test_edits_are_the_same_in_batches_of_any_size_and_begin_alike():
    model, whole = Perfect(), Perfect()
    assert EditEval(num_images=20, batch_size=7, seed=1)(model) == EditEval(num_images=20, seed=1)(
        whole
    )
    assert model.sizes == [7, 7, 6] and whole.sizes == [20]
    assert model.seeds == whole.seeds and len(set(model.seeds)) == 20
    assert edits(10) == edits(20)[:10]
    with pytest.raises(UserError, match="0 images"):
        EditEval(num_images=0)(model)


class Spoils(Perfect):
    """Edits as asked, but for the first shape that each edit does not touch: it is gone."""

    def edit(self, images, instructions, seeds, config=None):
        for edit in edits(IMAGES):
            shapes = [each for each in edit.target.shapes if each not in edit.untouched[:1]]
            key = draw(edit.source).tobytes(), edit.instruction
            self.after[key] = draw(Scene(tuple(shapes), edit.target.background))
        return super().edit(images, instructions, seeds, config)


class Idle(Perfect):
    """Returns every image as it was."""

    def edit(self, images, instructions, seeds, config=None):
        return images


def test_kept_is_the_share_of_the_shapes_that_an_edit_leaves_alone():
    untouched = [len(edit.untouched) for edit in edits(IMAGES)]
    gone = sum(number > 0 for number in untouched)
    assert 0 < gone < sum(untouched)
    spoilt = EditEval(num_images=IMAGES)(Spoils())
    assert spoilt["kept"] == pytest.approx(1 - gone / sum(untouched))
    assert spoilt["mean"] == pytest.approx(sum(number == 0 for number in untouched) / IMAGES)
    idle = EditEval(num_images=IMAGES)(Idle())
    assert (idle["mean"], idle["kept"]) == (0.0, 1.0)


def test_what_is_kept_is_read_beside_cells_that_are_unclear():
    edit = next(edit for edit in edits(IMAGES) if len(edit.untouched) > 1)
    image = draw(edit.target)
    first, second = edit.untouched[:2]
    rows, columns = (slice(CELL * n, CELL * (n + 1)) for n in (first.row, first.column))
    place = (rows, columns)
    image[place] = numpy.random.default_rng(0).integers(0, 256, image[place].shape)
    found = dict(zip(edit.untouched, kept(image, edit), strict=True))
    assert read(image) is None and not found[first] and found[second]


def test_unrelated_edits_seldom_score():
    levels = edit_chance(60)
    assert levels["source"] == 0 and levels["unrelated"] < 0.01
    assert 0 < levels["another"] < 0.3  # a scene has one to four shapes to choose from


def test_seeds_share_no_noise():
    first, second = Perfect(), Perfect()
    ShapeEval(num_images=20, seed=0)(first)
    ShapeEval(num_images=20, seed=1)(second)
    assert not set(first.seeds) & set(second.seeds)


def test_samples_are_those_of_the_shards_and_begin_alike():
    assert scoring.examples("eval", 12) == scoring.examples("eval", 24)[:12]
    few, more = (scoring.questions_about(scoring.examples("eval", n)) for n in (12, 24))
    assert few == more[:24]
    assert len(few) == 24 and few[0].question != few[1].question


def test_a_model_of_another_size_is_refused_in_one_sentence():
    class Large(Perfect):
        def generate(self, prompts, seeds, config=None):
            return torch.zeros(len(prompts), 3, 64, 64, dtype=torch.uint8)

    with pytest.raises(UserError, match="48x48 pixels, but the model makes 64x64"):
        ShapeEval(num_images=6)(Large())
    with pytest.raises(UserError, match="0 images"):
        ShapeEval(num_images=0)(Perfect())


def test_wilson_has_the_published_values():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81/263, 15/148, 0/20, 1/29
    cases = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (right, number), expected in cases.items():
        assert numpy.allclose(wilson(right / number, number), expected, atol=1e-4)
