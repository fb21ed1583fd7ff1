"""Best of N: seeds of candidates, rankers, memory, progress, metadata."""

from dataclasses import replace

import pytest
import torch
from tolerances import assert_same_images, images_agree

from triptych.inference.best_of import best_of, candidate_seed
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import ModelInference
from triptych.inference.model_ranker import NO, YES, ModelRanker
from triptych.interfaces import Ranker, as_ranker
from triptych.prompts import PromptConfig, conversation_ids
from triptych.rewards import ShapesChecker
from triptych.shapes_world.near_misses import QUESTION
from triptych.shapes_world.world import Scene, Shape, draw
from triptych.utils.errors import UserError
from triptych.utils.images import scaled_pixels, to_tensor
from triptych.utils.limits import SEED
from triptych.utils.png_metadata import read_metadata

PROMPTS = ["a red circle", "two blue squares", "a green cross left of a yellow circle"]
FEW = {"num_inference_steps": 2, "decoder_num_inference_steps": 1}


def brightness(images, prompts):
    return images.float().mean((1, 2, 3))


def nothing_is_generated(monkeypatch, pipe):
    def fail(*_, **__):
        raise AssertionError("an image was generated")

    monkeypatch.setattr(pipe.model.understanding.vlm, "condition", fail)


# --- seeds ----------------------------------------------------------------------------------------


def test_candidates_have_seeds_of_their_own_and_the_first_is_the_image_itself():
    images = [0, 7, 8, 2**32 - 1, *range(100, 1100)]
    seeds = [candidate_seed(seed, k) for seed in images for k in range(16)]
    assert len(set(seeds)) == len(seeds)
    assert [candidate_seed(seed, 0) for seed in images] == images
    assert seeds == [candidate_seed(seed, k) for seed in images for k in range(16)]
    assert all(seed in SEED for seed in [*seeds, candidate_seed(2**63 - 1, 999)])
    assert candidate_seed(2**32 - 1, 999) < 2**53  # what JavaScript counts exactly


# --- the choice -----------------------------------------------------------------------------------


def choose(scores, number, batch_size):
    """`best_of` of 2 images whose candidates are colours; `scores` by (image, candidate)."""
    asked, ranks = [], []
    of_seed = {candidate_seed(10 + i, k): 8 * i + k for i in range(2) for k in range(number)}

    def generate(owners, seeds):
        asked.append(len(seeds))
        colours = torch.tensor([of_seed[seed] for seed in seeds], dtype=torch.uint8)
        return colours[:, None, None, None].expand(-1, 3, 2, 2)

    def rank(images, prompts):
        ranks.append(len(images))
        found = [scores[int(c) // 8][int(c) % 8] for c in images[:, 0, 0, 0]]
        assert [f"prompt {int(c) // 8}" for c in images[:, 0, 0, 0]] == prompts
        return torch.tensor(found)

    best = best_of(
        generate,
        ["prompt 0", "prompt 1"],
        [10, 11],
        num_candidates=number,
        ranker=as_ranker(rank),
        batch_size=batch_size,
    )
    return best, asked, ranks


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_the_highest_score_wins_and_the_first_of_equal_ones(batch_size):
    scores = [[0.1, 0.5, 0.9, 0.9], [0.2, -1.0, 0.2, 0.1]]
    best, asked, ranks = choose(scores, 4, batch_size)
    assert best.seeds == [candidate_seed(10, 2), 11]
    assert best.scores == pytest.approx([0.9, 0.2])
    assert best.images[:, 0, 0, 0].tolist() == [2, 8]
    # no more are held than the call returns, rounded up to whole batches
    assert max(asked) == min(8, -(-2 // batch_size) * batch_size) and sum(asked) == 8
    assert max(ranks) <= batch_size


def test_scores_of_all_candidates_may_be_negative_or_infinite():
    best, *_ = choose([[float("-inf"), -3.0], [float("-inf"), float("-inf")]], 2, 2)
    assert best.seeds == [candidate_seed(10, 1), 11]


# --- the pipeline ---------------------------------------------------------------------------------


def test_the_metadata_makes_the_best_image_again(pipe, tmp_path):
    found = pipe(PROMPTS, num_candidates=3, seed=5, ranker=brightness, batch_size=4, **FEW)
    candidates = [
        pipe(
            prompt,
            num_images_per_prompt=1,
            seed=candidate_seed(5 + n, k),
            output_type="pt",
            **FEW,
        ).images
        for n, prompt in enumerate(PROMPTS)
        for k in range(3)
    ]
    bright = torch.cat(candidates).mean((1, 2, 3)).view(3, 3)
    best = bright.argmax(1)
    assert best.any()  # not all are the first
    for n, (image, metadata) in enumerate(zip(found.images, found.metadata, strict=True)):
        assert metadata["seed"] == candidate_seed(5 + n, int(best[n]))
        assert metadata["score"] == pytest.approx(255 * float(bright[n].max()), abs=0.1)
        assert metadata["ranker"] == "brightness" and metadata["num_candidates"] == 3
        image.save(tmp_path / "best.png")
        known = read_metadata(tmp_path / "best.png")
        assert_same_images(image, pipe(known["prompt"], seed=known["seed"], **FEW).images[0])


def test_neither_batch_size_nor_neighbours_change_the_choice(pipe):
    options = {"num_candidates": 3, "ranker": brightness, **FEW}
    large = pipe(PROMPTS, seed=5, batch_size=16, **options)
    small = pipe(PROMPTS, seed=5, batch_size=2, **options)
    alone = pipe(PROMPTS[2], seed=7, **options)
    assert [m["seed"] for m in large.metadata] == [m["seed"] for m in small.metadata]
    assert_same_images(large.images, small.images)
    assert alone.metadata[0]["seed"] == large.metadata[2]["seed"]


def test_without_candidates_nothing_is_ranked(pipe):
    plain = pipe(PROMPTS, seed=5, **FEW)
    one = pipe(PROMPTS, seed=5, num_candidates=1, **FEW)
    assert [a.tobytes() for a in plain.images] == [b.tobytes() for b in one.images]
    assert all("score" not in m and m["num_candidates"] == 1 for m in one.metadata)
    scored = pipe(PROMPTS, seed=5, num_candidates=1, ranker=brightness, **FEW)
    assert [m["seed"] for m in scored.metadata] == [5, 6, 7]
    assert all("score" in m for m in scored.metadata)


def test_progress_is_of_the_images_of_the_call(pipe):
    seen = []

    def callback(progress):
        seen.append((progress.stage, progress.images, progress.portion, progress.portions))
        assert len(progress.preview()) == len(progress.images)

    pipe(
        PROMPTS,
        num_candidates=3,
        seed=5,
        ranker=brightness,
        batch_size=2,
        callback_on_step_end=callback,
        **FEW,
    )
    assert {tuple(images) for _, images, *_ in seen} == {(0,), (0, 1), (1,), (2,)}
    assert [portion for *_, portion, _ in seen] == sorted(portion for *_, portion, _ in seen)
    assert {portion for *_, portion, _ in seen} == {0, 1, 2}
    assert {portions for *_, portions in seen} == {3}


def test_edits_are_ranked_by_a_given_ranker_only(pipe, monkeypatch):
    image = pipe(PROMPTS[0], seed=1, **FEW).images[0]
    edited = pipe.edit(
        image, prompt="make it blue", num_candidates=2, ranker=brightness, seed=1, **FEW
    )
    assert edited.metadata[0]["ranker"] == "brightness"
    nothing_is_generated(monkeypatch, pipe)
    with pytest.raises(UserError, match="ranks images of captions, not edits; leave"):
        pipe.edit(image, prompt="make it blue", num_candidates=2, **FEW)
    with pytest.raises(UserError, match="not edits"):
        ModelInference(pipe.model).edit(
            to_tensor([image]), ["x"], seeds=[1], config=GenerationConfig(num_candidates=2)
        )


def test_scores_of_a_bare_model_are_of_the_best_as_well(pipe):
    config = GenerationConfig(num_candidates=3, **FEW)
    found = ModelInference(pipe.model).generate(PROMPTS, seeds=[5, 6, 7], config=config)
    assert_same_images(found, pipe(PROMPTS, seed=5, num_candidates=3, **FEW).images)


# --- rankers --------------------------------------------------------------------------------------


def scene(*shapes):
    return Scene(tuple(shapes), "white")


RED_CIRCLE = scene(Shape("circle", "red", "large", 1, 1))
GREEN_SQUARE = scene(Shape("square", "green", "large", 1, 1))


def with_question(pipe, monkeypatch, question):
    generation = pipe.model.generation
    prompt = replace(generation.prompt, ranking_question=question)
    monkeypatch.setattr(generation, "prompt", prompt)
    return ModelRanker(pipe.model)


def test_the_model_ranks_by_its_answer(pipe, monkeypatch):
    ranker = with_question(pipe, monkeypatch, "is there {caption}?")
    images = to_tensor([draw(RED_CIRCLE), draw(GREEN_SQUARE)])
    right = ranker.scores(images, ["a red circle", "a green square"])
    wrong = ranker.scores(images, ["a green square", "a red circle"])
    assert right.min() > 0.9 and wrong.max() < 0.1


def test_the_score_is_the_probability_of_yes_against_no(pipe, monkeypatch):
    ranker = with_question(pipe, monkeypatch, "is there {caption}?")
    images = to_tensor([draw(RED_CIRCLE), draw(GREEN_SQUARE)])
    captions = ["a purple triangle at the top left on a white background.", "a green square"]
    model, tokenizer = pipe.model, pipe.model.understanding.vlm.tokenizer
    facts, expected = model.preprocessing(), []
    for image, caption in zip(images, captions, strict=True):
        question = f"is there {caption.removesuffix('.')}?"
        ids, _ = conversation_ids(tokenizer, [(question, None)], 256, facts.image_tokens)
        shown = facts.image_inputs(scaled_pixels(image[None], facts.understanding_size))
        out = model.understanding.vlm.model(
            input_ids=torch.tensor([ids]),
            pixel_values=shown[0],
            image_grid_thw=shown[1],
            mm_token_type_ids=model.understanding.vlm._token_types(torch.tensor([ids])),
        )
        p = out.logits[0, -1].softmax(-1)
        first = {word: tokenizer.encode(word)[0] for word in (*YES, *NO)}
        yes = sum(float(p[first[word]]) for word in YES)
        no = sum(float(p[first[word]]) for word in NO)
        expected.append(yes / (yes + no))
    # one padded batch, of prompts of other lengths
    assert ranker.scores(images, captions).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_tiny_preset_asks_what_it_is_trained_on(pipe):
    assert pipe.model.generation.prompt.ranking_question == QUESTION


def test_the_checker_is_the_oracle():
    images = to_tensor([draw(RED_CIRCLE), draw(GREEN_SQUARE)])
    ranker = ShapesChecker()
    assert ranker.scores(images, ["a red circle", "a red circle"]).tolist() == [1, 0]
    with pytest.raises(UserError, match="'a cat', which is no caption of the shapes world"):
        ranker.check(["a cat"])


def test_any_object_with_scores_or_function_is_a_ranker():
    class Reward:
        name = "reward"

        def scores(self, images, prompts):
            return [1.0] * len(images)

    ranker = as_ranker(Reward())
    assert isinstance(ranker, Ranker) and ranker.name == "reward"
    assert as_ranker(ranker) is ranker and as_ranker(brightness).name == "brightness"
    for wrong in (3, "clip", Reward):
        with pytest.raises(UserError, match=r"has no method scores\(images, prompts\); give"):
            as_ranker(wrong)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 0}, "num_candidates is 0; give a whole number from 1 to 1,000"),
        ({"num_candidates": 1.5}, "num_candidates is 1.5; give a whole number"),
        ({"num_candidates": 2, "ranker": "clip"}, "ranker 'clip' has no method scores"),
        ({"best_of": 2}, "no argument 'best_of'; use num_candidates"),
        ({"num_candidates": 2, "ranker": ShapesChecker(), "prompt": "a cat"}, "'a cat', which"),
        ({"num_candidates": 2, "prompt": "circle " * 225}, "the conversation has .* shorten it"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_any_work(pipe, monkeypatch, options, message):
    nothing_is_generated(monkeypatch, pipe)
    with pytest.raises(UserError, match=message):
        pipe(**{"prompt": "a red circle", **FEW, **options})


@pytest.mark.parametrize("part", ["vision_tower", "lm_head"])
def test_a_model_that_does_not_read_or_answer_cannot_rank(pipe, monkeypatch, part):
    nothing_is_generated(monkeypatch, pipe)
    monkeypatch.setattr(pipe.model.understanding.vlm, "left_out", {part: "it is not there."})
    with pytest.raises(UserError, match="cannot rank its images by itself: .*; give a ranker"):
        pipe("a red circle", num_candidates=2, **FEW)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(2, 1), r"'wrong' returned scores of shape \[2, 1\] for 2 images"),
        (torch.tensor([float("nan"), 1]), "'wrong' returned NaN"),
    ],
)
def test_wrong_scores_name_their_ranker(pipe, scores, message):
    def wrong(images, prompts):
        return scores

    with pytest.raises(UserError, match=message):
        pipe("a red circle", num_candidates=2, ranker=wrong, seed=1, **FEW)


def test_a_question_without_its_caption_is_refused():
    with pytest.raises(UserError, match="ranking_question does not name {caption}; put it"):
        PromptConfig(ranking_question="is it good?")


def test_another_seed_is_another_image(pipe):
    first, second = (pipe("a red circle", seed=candidate_seed(3, k), **FEW).images for k in (0, 1))
    assert not images_agree(first, second)
