"""The reward of text in images: its formula, what text is wanted, and rapidocr's interface."""

import sys
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import torch

from triptych.interfaces import RewardSample
from triptych.interfaces.reward import rewarded
from triptych.rewards import TextReward
from triptych.rewards.text import wanted_text
from triptych.utils.errors import UserError


def sample(prompt, **facts):
    return RewardSample(prompt, "key", facts)


def score(read, wanted):
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return TextReward(lambda image: read)(images, [sample(f'a sign that says "{wanted}"')]).item()


@pytest.mark.parametrize(
    "read,wanted,expected",
    [
        ("Hello World", "hello  world", 1.0),
        ("hallo", "Hello", 0.8),
        ("", "Hello", 0.0),
        ("hello, and much more text", "Hello", 0.0),
        ("hell", "hello", 0.8),
        ("hellos", "hello", 0.8),
    ],
)
def test_a_score_is_one_minus_edits_over_letters(read, wanted, expected):
    assert score(read, wanted) == pytest.approx(expected)


def test_images_of_a_batch_are_read_in_order():
    images = torch.stack([torch.full((3, 4, 5), value, dtype=torch.uint8) for value in (1, 2)])
    seen = []

    def read(image):
        seen.append((image.shape, image.dtype))
        return {1: "one", 2: "two"}[int(image[0, 0, 0])]

    samples = [sample("x", text="one"), sample('"three"')]
    scores = rewarded(TextReward(read), images, samples)["text"]
    assert scores.tolist() == pytest.approx([1.0, 0.0 + 1 / 5])
    assert seen == [((4, 5, 3), numpy.uint8)] * 2


def test_the_wanted_text_is_a_field_or_what_is_quoted():
    assert wanted_text(sample('a sign "open" beside “closed”')) == "open closed"
    assert wanted_text(sample('a sign "open"', text="shut")) == "shut"
    for nothing in (sample("a dog's bone"), sample("x", text=" "), sample("x", text=3)):
        with pytest.raises(UserError, match="names no text to show; quote it"):
            wanted_text(nothing)


def test_rapidocr_reads_bgr_and_may_find_nothing(monkeypatch):
    calls = []

    class RapidOCR:
        def __init__(self, params):
            assert params == {"Global.log_level": "critical"}

        def __call__(self, image):
            calls.append(image[0, 0].tolist())
            return SimpleNamespace(txts=("Hello", "World") if len(calls) == 1 else None)

    module = ModuleType("rapidocr")
    module.RapidOCR = RapidOCR
    monkeypatch.setitem(sys.modules, "rapidocr", module)
    images = torch.tensor([1, 2, 3], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 4, 4)
    assert TextReward()(images, [sample('"hello world"')] * 2).tolist() == [1.0, 0.0]
    assert calls == [[3, 2, 1]] * 2


def test_without_rapidocr_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"pip install 'triptych\[ocr\]'"):
        TextReward()
