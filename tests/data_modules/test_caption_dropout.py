"""Words left out of captions: which, how often, and where not."""

import numpy as np
import pytest
from builders import builder, data, unified

from triptych.data_modules.batching.caption_dropout import NO_DROPOUT, CaptionDropout
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.utils.errors import UserError

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]


def drawn(dropout, caption, number=400):
    return [dropout(caption, np.random.default_rng(seed)) for seed in range(number)]


def test_only_the_named_words_are_left_out():
    found = set(drawn(CaptionDropout(0.5, COLOURS), "a red circle and a Blue, small square"))
    assert found == {
        "a red circle and a Blue, small square",
        "a circle and a Blue, small square",
        "a red circle and a small square",
        "a circle and a small square",
    }


def test_each_word_is_left_out_with_the_probability():
    lengths = [len(c.split()) for c in drawn(CaptionDropout(0.3), " ".join("abcdefghij"))]
    assert 6.7 < np.mean(lengths) < 7.3


def test_protected_words_stay_and_one_word_does():
    found = drawn(CaptionDropout(0.9, protected=["Monet"]), "a garden by monet.")
    assert all("monet." in caption for caption in found)
    assert drawn(CaptionDropout(0.99), "circle", 50) == ["circle"] * 50


def test_tags_have_a_separator_of_their_own():
    tags = CaptionDropout(0.5, protected=["1girl"], separator=",")
    found = set(drawn(tags, "1girl, long hair, red eyes"))
    assert found == {
        "1girl, long hair, red eyes",
        "1girl, long hair",
        "1girl, red eyes",
        "1girl",
    }


def test_prompts_follow_from_seed_and_sample(samples, tokenizer):
    processor = unified("stage2").preprocessing()

    def prompts(seed, **options):
        build = builder(samples, TEXT_TO_IMAGE, processor, seed, **options)
        return [tokenizer.decode(build(0, [0], [n]).input_ids[0]) for n in range(12)]

    dropped = prompts(0, caption_dropout=CaptionDropout(0.5))
    assert len(set(dropped)) > 6 and dropped == prompts(0, caption_dropout=CaptionDropout(0.5))
    assert dropped != prompts(1, caption_dropout=CaptionDropout(0.5))
    assert prompts(0, caption_dropout=CaptionDropout(0.0)) == prompts(0)


def test_nothing_is_left_out_in_validation(shapes_folder):
    module = data(shapes_folder, caption_dropout=CaptionDropout(0.5))
    assert [each.caption_dropout for each in module.datasets.values()] == [CaptionDropout(0.5)]
    assert [each.caption_dropout for each in module.val_datasets.values()] == [NO_DROPOUT]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"probability": 1.0}, "probability is 1.0"),
        ({"probability": -0.1}, "probability is -0.1"),
        ({"probability": 0.1, "separator": ""}, "separator is empty"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        CaptionDropout(**settings)
