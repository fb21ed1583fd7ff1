"""Answers with images: where an image comes, what it is made from, and how the answer goes on."""

import numpy as np
import pytest
import torch
from edit_models import edit_model, learned
from PIL import Image
from scripted_chat import IMAGE, Script
from tolerances import images_agree

from triptych.inference.chat import prepare_answers
from triptych.inference.interleaved import most_images
from triptych.interfaces import Source
from triptych.prompts import GENERATION_INSTRUCTION, IMAGE_PAD, token_id
from triptych.utils.errors import UserError

FAST = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}
CAPTION = GENERATION_INSTRUCTION.format(caption="a red circle")
ANSWERS = {
    CAPTION: [IMAGE],
    "draw it": ["here:", IMAGE, "done"],
    "twice": [IMAGE, "and", IMAGE, "end"],
    "hello": ["hi"],
}


@pytest.fixture
def script(pipe, tokenizer, monkeypatch):
    written = Script(tokenizer, ANSWERS)
    monkeypatch.setattr(pipe.model.understanding.vlm, "generate_text", written)
    return written


def test_a_captions_image_is_that_of_generation(pipe, script):
    answer = pipe.chat(CAPTION, seed=5, **FAST)
    (image,) = answer.images
    assert answer == "" and answer.content == [image]
    assert images_agree(image, pipe("a red circle", seed=5, **FAST).images[0])


def test_texts_and_images_come_in_order_and_the_image_is_shown(pipe, script, tokenizer):
    (answer,) = pipe.chat_batch(["draw it"], seed=1, **FAST)
    before, image, after = answer.content
    assert (before, after, answer.text) == ("here:", "done", "here:\ndone")
    assert answer.finish_reason == "stop"
    said = sum(len(tokenizer(text)["input_ids"]) for text in (before, after))
    assert answer.completion_tokens == said + 1
    (ids, grids, *_), (again, shown, *_) = script.calls
    pad = token_id(tokenizer, IMAGE_PAD)
    assert grids is None and shown.tolist() == [[1, 6, 6]]
    assert not (ids == pad).any() and (again == pad).sum() == 9
    text = tokenizer.decode(again[0]).replace("<|image_pad|>" * 9, "<|9|>")
    assert text.endswith("assistant\nhere:[IMG]<|vision_start|><|9|><|vision_end|>")


def test_the_next_turn_has_the_prompt_that_was_written(pipe, script, tokenizer):
    """An answer sent back is tokenized to what the model wrote and saw."""
    answer = pipe.chat("draw it", seed=1, **FAST)
    written = script.calls[-1][0][0].tolist()
    talk = [{"role": "user", "content": "draw it"}, {"role": "assistant", "content": answer}]
    pipe.chat([*talk, {"role": "user", "content": "hello"}])
    assert script.calls[-1][0][0].tolist()[: len(written)] == written
    parts = [{"type": "text", "text": "here: "}, answer.images[0], " done"]
    talk[1]["content"] = parts
    pipe.chat([*talk, {"role": "user", "content": "hello"}])
    assert script.calls[-1][0][0].tolist()[: len(written)] == written


def test_a_batch_answers_as_one_by_one(pipe, script):
    talks = ["hello", "twice", CAPTION, "draw it"]
    together = pipe.chat_batch(talks, seed=[1, 2, 3, 4], **FAST)
    for number, talk in enumerate(talks):
        (alone,) = pipe.chat_batch([talk], seed=number + 1, **FAST)
        assert [type(part) for part in alone.content] == [
            type(part) for part in together[number].content
        ]
        assert alone.text == together[number].text
        for one, other in zip(alone.images, together[number].images, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 3
    assert not images_agree(*together[1].images)  # each image has a seed of its own


def test_pieces_and_images_are_told_as_they_come(pipe, script):
    told = list(pipe.chat("twice", stream=True, seed=2, **FAST))
    kinds = ["".join(part if isinstance(part, str) else "|" for part in told)]
    assert kinds == ["|and|end"]
    images = [part for part in told if not isinstance(part, str)]
    answer = pipe.chat("twice", seed=2, **FAST)
    assert images_agree(images[0], answer.images[0]) and images_agree(images[1], answer.images[1])


def test_no_more_images_than_allowed(pipe, script):
    assert len(pipe.chat("twice", seed=2, max_images=1, **FAST).images) == 1
    assert script.calls[-1][-1] == [[script.image]]
    answer = pipe.chat("twice", max_images=0)
    assert answer.content == ["andend"] and script.calls[-1][-1] == [[script.image]]
    with pytest.raises(UserError, match="max_images is -1"):
        pipe.chat("twice", max_images=-1)


def test_a_forbidden_token_is_never_written(pipe, tokenizer):
    """Of all tokens but one the mask leaves none else."""
    vlm = pipe.model.understanding.vlm
    ids = torch.tensor([tokenizer("what is it")["input_ids"]] * 2)
    size = vlm.model.lm_head.out_features
    forbidden = [[], [each for each in range(size) if each != 77]]
    new = vlm.generate_text(
        ids, torch.ones_like(ids), None, None, max_new_tokens=2, forbidden=forbidden
    )
    assert new[1].tolist() == [77, 77] and new[0].tolist() != [77, 77]


def test_an_answer_ends_where_the_context_does(pipe, script, monkeypatch):
    (whole,) = pipe.chat_batch(["draw it"], seed=1, **FAST)
    monkeypatch.setattr(pipe.model.understanding, "chat_tokens", whole.prompt_tokens + 8)
    (answer,) = pipe.chat_batch(["draw it"], seed=1, **FAST)
    assert answer.finish_reason == "length" and len(answer.images) == 1
    assert answer.content[0] == "here:" and len(answer.content) == 2
    (short,) = pipe.chat_batch(["draw it"], max_new_tokens=2, seed=1, **FAST)
    assert short.finish_reason == "length" and not short.images


def test_more_turns_than_the_context_holds_is_one_sentence(pipe, script):
    turn = [
        {"role": "user", "content": "draw it"},
        {"role": "assistant", "content": [Image.new("RGB", (48, 48))]},
    ]
    with pytest.raises(
        UserError,
        match=r"^the conversation has \d+ tokens, the model takes 256.*leave its beginning out\.$",
    ):
        pipe.chat([*turn * 12, turn[0]])


def test_a_model_without_a_generator_answers_in_words(pipe, script, monkeypatch):
    monkeypatch.setattr(pipe.model, "lacks", lambda *parts: "it is a test")
    assert pipe.chat("draw it").content == ["here:done"]
    with pytest.raises(UserError, match="answers without images, as it is a test"):
        pipe.chat("draw it", max_images=2)
    assert most_images(pipe.model, None) == 0


def test_a_generator_that_sees_sources_sees_the_last_image(tokenizer, monkeypatch, weights):
    model = learned(edit_model(weights=weights)).eval()
    model.understanding.answer_images = 4
    monkeypatch.setattr(
        model.understanding.vlm, "generate_text", Script(tokenizer, ANSWERS | {"blue": [IMAGE]})
    )
    sources = []
    sample = model.generation.sample

    def recorded(*args, source: Source, **options):
        sources.append(source)
        return sample(*args, source=source, **options)

    monkeypatch.setattr(model.generation, "sample", recorded)
    shown = Image.new("RGB", (48, 48), (200, 0, 0))
    talks = ["twice", [{"role": "user", "content": [shown, "blue"]}], "hello"]
    options = {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "seed": [1, 2, 3]}
    answers = prepare_answers(model, torch.device("cpu"), talks, **options)(None)
    first, second = sources
    assert first.present.tolist() == [False, True] and second.present.tolist() == [True]

    def features(image):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return model.target_encoder(pixels).float()

    assert torch.allclose(first.features[1:], features(shown), atol=1e-5)
    assert torch.allclose(second.features, features(answers[0].images[0]), atol=1e-5)
