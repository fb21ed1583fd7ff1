"""Rewards that come with the package, on judges and models that are small or made up."""

import json

import pytest
import torch
from PIL import Image

from triptych.evaluation.geneval.detection import DetectedObject
from triptych.evaluation.judges.base import Judge, JudgeFailed
from triptych.interfaces import RewardSample, ranked, rewarded
from triptych.policy_loss import standardized
from triptych.rewards import (
    ClipScore,
    GenEvalReward,
    JudgeReward,
    PreferenceScore,
    RewardEnsemble,
    ShapesChecker,
)
from triptych.shapes_world.captions import parse
from triptych.shapes_world.world import Scene, Shape, draw
from triptych.utils.errors import UserError

NOISE = torch.randint(0, 256, (3, 3, 48, 48), generator=torch.Generator().manual_seed(0)).byte()


def samples(*prompts, facts=None):
    return [RewardSample(prompt, f"key{n}", facts or {}) for n, prompt in enumerate(prompts)]


def drawing(*shapes):
    return torch.from_numpy(draw(Scene(shapes, "white"))).permute(2, 0, 1)


def test_the_checker_of_the_shapes_world():
    circle = drawing(Shape("circle", "red", "large", 1, 1))
    images = torch.stack([circle, circle])
    asked = samples("a red circle", "a blue circle")
    assert rewarded(ShapesChecker(), images, asked) == {"shapes_checker": pytest.approx([1, 0])}
    assert ranked(ShapesChecker(), images, [each.prompt for each in asked]) == [1, 0]
    with pytest.raises(UserError, match="'a cat', which is no caption of the shapes world"):
        ShapesChecker().check(["a cat"])
    assert parse("a red circle")


def test_clip_scores_are_those_of_the_benchmark(clip_folder):
    reward = ClipScore(str(clip_folder))
    scores = rewarded(reward, NOISE, samples("a cat", "b", "c d"))["clip_score"]
    assert ((scores >= 0) & (scores <= 1)).all() and len(set(scores.tolist())) == 3
    alone = rewarded(reward, NOISE[1:2], samples("b"))["clip_score"]
    torch.testing.assert_close(alone[0], scores[1])


def test_preference_is_a_scaled_cosine(clip_folder):
    reward = PreferenceScore(str(clip_folder))
    scores = rewarded(reward, NOISE, samples("a cat", "b", "c d"))["preference_score"]
    cosines = rewarded(ClipScore(str(clip_folder)), NOISE, samples("a cat", "b", "c d"))
    scale = reward.model_parts[0].logit_scale.exp().item()
    positive = scores > 0
    torch.testing.assert_close(scores[positive], scale * cosines["clip_score"][positive])


def test_a_model_that_does_not_exist_is_named_when_it_is_used(tmp_path):
    reward = PreferenceScore(str(tmp_path / "none"))
    with pytest.raises(UserError, match="none is neither a folder with a CLIPModel nor"):
        rewarded(reward, NOISE, samples("a", "b", "c"))


class Detects:
    """Finds a cup wherever the corner is bright."""

    name, classes = "made up", frozenset({"cup"})

    def detect(self, image):
        bright = image.getpixel((0, 0))[0] > 128
        return [DetectedObject("cup", 0.9, (0, 0, 8, 8))] if bright else []


def test_geneval_checks_what_a_prompt_includes():
    reward = GenEvalReward("detector", "colours")
    reward.__dict__["judges"] = (Detects(), None)
    images = torch.stack([torch.full((3, 16, 16), level).byte() for level in (255, 0)])
    entry = {"tag": "single_object", "include": [{"class": "cup", "count": 1}]}
    asked = samples("a photo of a cup", "a photo of a cup", facts=entry)
    assert rewarded(reward, images, asked)["geneval"].tolist() == [1, 0]
    with pytest.raises(UserError, match='does not say what GenEval checks; .* "include"'):
        rewarded(reward, images, samples("a cup", "a cup"))


class Says(Judge):
    """Answers by what the question ends with."""

    name = "made up"

    def answer(self, image: Image.Image, question: str) -> str:
        assert isinstance(image, Image.Image)
        text = question.split(": ")[-1]
        if text == "down":
            raise JudgeFailed("made up gave no answer (HTTP 500)")
        return text


def judged(*answers):
    reward = JudgeReward(Says(), question="How good is it: {prompt}")
    return rewarded(reward, NOISE[: len(answers)], samples(*answers))["judge"]


@pytest.mark.parametrize(
    "answer,score", [("7", 0.7), ("8.5 of 10", 0.85), ("Yes.", 1), ("no", 0), ("It is a 10", 1)]
)
def test_answers_of_a_judge_are_numbers(answer, score):
    assert judged(answer).tolist() == [pytest.approx(score)]


@pytest.mark.parametrize(
    "answer,said",
    [
        ("nice", "answered 'nice' in place of yes, no or a number from 0 to 10"),
        ("42", "answered '42' in place of"),
        ("down", "gave no answer .* stops with a checkpoint: resume it"),
    ],
)
def test_a_judge_that_says_nothing_is_named(answer, said):
    with pytest.raises(UserError, match=said):
        judged("7", answer)


def test_a_question_names_its_prompt():
    with pytest.raises(UserError, match="does not say {prompt}"):
        JudgeReward(Says(), "How nice is it?")


def test_a_prompt_is_text_in_the_question():
    assert judged("{0} of {prompt}: 3").tolist() == [pytest.approx(0.3)]


class Constant(ShapesChecker):
    def __init__(self, name, values):
        self.name, self.values = name, values

    def __call__(self, images, samples):
        return torch.tensor(self.values)


def test_an_ensemble_is_the_mean_less_the_deviation_in_units_of_each():
    first, second = [0.0, 1.0, 2.0], [100.0, 300.0, 200.0]
    members = [Constant("first", first), Constant("second", second)]
    asked = samples("a", "b", "c")
    parts = rewarded(RewardEnsemble(members), NOISE, asked)
    assert parts["first"].tolist() == first and parts["second"].tolist() == second
    scores = standardized(parts)
    for pessimism in (0.0, 1.0, 2.0):
        found = RewardEnsemble(members, pessimism).combined(parts)
        expected = scores.mean(0) - pessimism * scores.std(0, correction=0)
        torch.testing.assert_close(found, expected)
    assert ranked(RewardEnsemble(members, 0.0), NOISE, ["a", "b", "c"])[0] < 0


@pytest.mark.parametrize(
    "names,pessimism,said",
    [
        (["one"], 1.0, r"\['one'\]; give two or more"),
        (["one", "one"], 1.0, "with different names"),
        (["one", "two"], -1.0, "pessimism -1.0"),
    ],
)
def test_what_is_no_ensemble_is_refused(names, pessimism, said):
    with pytest.raises(UserError, match=said):
        RewardEnsemble([Constant(name, [0.0]) for name in names], pessimism)


def test_facts_of_a_line_reach_the_reward(tmp_path):
    from triptych.data_modules import Collator, PromptFile, TaskDataset
    from triptych.interfaces import TEXT_TO_REWARD

    entry = {"prompt": "a photo of a cup", "tag": "single_object", "include": []}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(entry) + "\n")
    source = PromptFile(tmp_path / "prompts.jsonl").open()
    dataset = TaskDataset(source, TEXT_TO_REWARD)
    assert dataset.metadata(0) == entry and source.caption(0) == "a photo of a cup"
    assert Collator([dataset], None).objective == "rewarded_generation"
