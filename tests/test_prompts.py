"""The templates, character by character, and the ids that the tokenizer gives them."""

import pytest
import torch

from triptych.prompts import (
    IGNORED,
    PAD,
    SPECIAL_TOKENS,
    START_OF_IMAGE,
    conversation_ids,
    generation_ids,
    negative_ids,
    pad,
    reconstruction_ids,
    token_id,
)
from triptych.utils.errors import UserError

PUBLISHED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
    "Please generate image based on the following caption: a red circle<|im_end|>\n"
    "<|im_start|>assistant\n"
    "[IMG]"
)


def test_the_generation_prompt_is_the_published_one(tokenizer):
    ids = generation_ids(tokenizer, "  a red circle\n", 256)
    assert tokenizer.decode(ids) == PUBLISHED
    assert ids[-1] == token_id(tokenizer, START_OF_IMAGE) and ids.count(ids[-1]) == 1


def test_the_published_templates(tokenizer):
    caption = " a red circle\n"
    asked = generation_ids(tokenizer, caption, 256, template="published_inference")
    assert tokenizer.decode(asked) == PUBLISHED.replace("a red circle", caption)
    taught = generation_ids(tokenizer, caption, 256, template="published_training")
    assert tokenizer.decode(taught) == PUBLISHED.replace("a red circle", caption).replace(
        "[IMG]", "<|im_end|>\n[IMG]"
    )


def test_published_training_cuts_the_end_of_a_long_prompt(tokenizer):
    whole = generation_ids(tokenizer, "red " * 30, 256, template="published_training")
    cut = generation_ids(tokenizer, "red " * 30, 40, template="published_training")
    assert cut == [*whole[:39], token_id(tokenizer, START_OF_IMAGE)]
    exact = generation_ids(tokenizer, "red " * 30, len(whole), template="published_training")
    assert exact == whole
    with pytest.raises(UserError, match="the model takes 40"):
        generation_ids(tokenizer, "red " * 30, 40, template="published_inference")


def test_the_prompt_that_shows_an_image(tokenizer):
    ids = reconstruction_ids(tokenizer, 3, 256)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>\n"
        "Please reconstruct the given image.<|im_end|>\n"
        "<|im_start|>assistant\n[IMG]"
    )
    with pytest.raises(UserError, match="the model takes 20; shorten it: 'Please reconstruct"):
        reconstruction_ids(tokenizer, 3, 20)


def test_the_negative_prompt_is_a_space_outside_of_any_chat(tokenizer):
    assert tokenizer.decode(negative_ids(tokenizer)) == " [IMG]"


def test_special_tokens_are_one_id_each(tokenizer):
    ids = [token_id(tokenizer, token) for token in SPECIAL_TOKENS]
    assert len(set(ids)) == len(SPECIAL_TOKENS)
    for token, number in zip(SPECIAL_TOKENS, ids, strict=True):
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [number]


def test_a_tokenizer_without_our_token_is_refused():
    class Stranger:
        name_or_path, unk_token_id = "some/model", 0

        def convert_tokens_to_ids(self, token):
            return None if token == PAD else 0

    for token in (PAD, START_OF_IMAGE):
        with pytest.raises(UserError, match="tokenizer of some/model has no token"):
            token_id(Stranger(), token)


def test_a_conversation_is_chatml_and_only_answers_are_learned(tokenizer):
    turns = [("what is it?", "a circle"), (" which colour? ", "red")]
    ids, labels = conversation_ids(tokenizer, turns, 256, image_tokens=3)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
        "what is it?<|im_end|>\n"
        "<|im_start|>assistant\na circle<|im_end|>\n"
        "<|im_start|>user\nwhich colour?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>"
    )
    learned = [number for number in labels if number != IGNORED]
    assert tokenizer.decode(learned) == "a circle<|im_end|>red<|im_end|>"
    assert len(ids) == len(labels)
    assert all(label in (IGNORED, number) for number, label in zip(ids, labels, strict=True))


def test_an_open_answer_ends_with_the_header(tokenizer):
    ids, labels = conversation_ids(tokenizer, [("what is it?", None)], 256)
    assert tokenizer.decode(ids).endswith("what is it?<|im_end|>\n<|im_start|>assistant\n")
    assert set(labels) == {IGNORED}


def test_training_and_inference_share_the_prompt(tokenizer):
    """The prompt of inference is the beginning of a training sequence."""
    taught, labels = conversation_ids(tokenizer, [("what is it?", "a circle")], 256, 9)
    asked, _ = conversation_ids(tokenizer, [("what is it?", None)], 256, 9)
    assert taught[: len(asked)] == asked
    assert labels[len(asked)] != IGNORED and set(labels[: len(asked)]) == {IGNORED}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: generation_ids(t, " ", 256), "^the prompt is empty"),
        (lambda t: generation_ids(t, "", 256, key="k7"), "the prompt of sample 'k7' is empty"),
        (
            lambda t: generation_ids(t, "red " * 300, 256, key="k7"),
            r"sample 'k7' has \d+ tokens, the model takes 256; shorten it: 'red red",
        ),
        (lambda t: conversation_ids(t, [("", "a")], 256), "^question 1 is empty"),
        (
            lambda t: conversation_ids(t, [("a", "b"), ("\n", "c")], 256, key="k7"),
            "question 2 of sample 'k7' is empty",
        ),
        (
            lambda t: conversation_ids(t, [("red " * 300, "a")], 256, key="k7"),
            r"conversation of sample 'k7' has \d+ tokens, the model takes 256",
        ),
    ],
)
def test_invalid_prompts_are_refused(make, says, tokenizer):
    with pytest.raises(UserError, match=says):
        make(tokenizer)


def test_the_limit_itself_is_allowed(tokenizer):
    number = len(generation_ids(tokenizer, "a red circle", 256))
    assert len(generation_ids(tokenizer, "a red circle", number)) == number
    with pytest.raises(UserError):
        generation_ids(tokenizer, "a red circle", number - 1)


def test_padding():
    ids, mask = pad([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = pad([[5, 6, 7], [8]], 9, left=True)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids.dtype == mask.dtype == torch.int64
