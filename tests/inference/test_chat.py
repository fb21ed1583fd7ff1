"""Conversations: prompts, batches, draws by seed, pieces as they come."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import built, vlm
from PIL import Image
from tolerances import assert_same_images

from triptych.backbones.token_sampling import choice
from triptych.conversations import chat_ids
from triptych.inference import chat
from triptych.inference.model_inference import inference_of
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import Sampling
from triptych.modules import UnderstandingModule
from triptych.modules.text_generation import DetokenizerState
from triptych.prompts import PromptError, conversation_ids
from triptych.utils.callback_iterator import iterate_callback
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def pipe():
    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


def disc(colour="red", size=(48, 48)):
    """A disc on black."""
    image = Image.new("RGB", size)
    y, x = np.ogrid[: size[1], : size[0]]
    inside = (x - size[0] / 2) ** 2 + (y - size[1] / 2) ** 2 < (min(size) / 4) ** 2
    image.paste(colour, mask=Image.fromarray((inside * 255).astype(np.uint8)))
    return image


def asked(*content):
    return [{"role": "user", "content": list(content)}]


TALK = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": [disc(), "what colour is it?"]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": ["and this ", disc("blue"), "?"]},
]


# --- prompts --------------------------------------------------------------------------------------


def test_a_question_about_an_image_is_put_as_in_training(tokenizer):
    expected, _ = conversation_ids(tokenizer, [("what colour is it?", None)], 256, 9)
    assert chat_ids(tokenizer, [("user", [9, "what colour is it?"])], 256) == expected
    turns = [("what is it?", "a circle"), ("what colour?", None)]
    expected, _ = conversation_ids(tokenizer, turns, 256)
    roles = [("user", ["what is it?"]), ("assistant", ["a circle"]), ("user", ["what colour?"])]
    assert chat_ids(tokenizer, roles, 256) == expected


def test_a_conversation_is_written_as_qwen_writes_it(tokenizer):
    turns = [
        ("system", ["be brief"]),
        ("user", [2, "what is it?"]),
        ("assistant", ["a circle"]),
        ("user", ["and ", 1, " this?"]),
    ]
    assert tokenizer.decode(chat_ids(tokenizer, turns, 256)) == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>what is it?"
        "<|im_end|>\n<|im_start|>assistant\na circle<|im_end|>\n"
        "<|im_start|>user\nand <|vision_start|><|image_pad|><|vision_end|> this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(chat_ids(tokenizer, [("user", ["hello"])], 256)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompt_leaves_room_for_an_answer(tokenizer):
    length = len(chat_ids(tokenizer, [("user", ["hello"])], 256))
    assert len(chat_ids(tokenizer, [("user", ["hello"])], length + 1)) == length
    with pytest.raises(PromptError, match=f"has {length} tokens, the model takes {length} with"):
        chat_ids(tokenizer, [("user", ["hello"])], length)


# --- answers --------------------------------------------------------------------------------------


def test_an_image_is_seen(pipe):
    assert pipe.chat(asked(disc("red"), "what colour is the circle?")) == "red"
    assert pipe.chat(asked(disc("green"), "what colour is the circle?")) == "green"


def test_an_image_after_its_question_is_seen_as_before_it(pipe, monkeypatch):
    question, rows = "what colour is the circle?", []

    def ids(*arguments):
        rows.append(chat_ids(*arguments))
        return rows[-1]

    monkeypatch.setattr(chat, "chat_ids", ids)
    assert pipe.chat(asked(question, disc("green"))) == "green"
    monkeypatch.setattr(pipe.model.understanding, "images_first", False)
    for talk in (asked(disc("green"), question), asked(question, disc("green"))):
        pipe.chat(talk)
    after, before, unmoved = rows
    assert after == before != unmoved and sorted(after) == sorted(unmoved)


def test_a_batch_answers_as_one_by_one(pipe):
    talks = [
        asked("what is it?"),
        TALK,
        asked(disc("green", (96, 48)), "what colour is the circle?"),
        asked(disc(), disc("blue"), "are they the same?"),
    ]
    together = pipe.chat_batch(talks, max_new_tokens=8, seed=3)
    alone = [
        pipe.chat_batch([talk], max_new_tokens=8, seed=3 + n)[0] for n, talk in enumerate(talks)
    ]
    for one, other in zip(together, alone, strict=True):
        assert replace(one, content=[]) == replace(other, content=[])
        assert len(one.content) == len(other.content)
        if one.images:
            assert_same_images(one.images, other.images)
    question = disc("green", (96, 48)), ["what colour is the circle?"]
    pixels = torch.from_numpy(np.array(question[0].crop((24, 0, 72, 48)))).permute(2, 0, 1)[None]
    assert [together[2].text] == inference_of(pipe.model).answer(pixels, question[1])


def test_nothing_of_an_image_is_left_for_the_next_conversation(pipe):
    fresh = pipe.chat_batch(
        [asked("what colour is it?")], max_new_tokens=8, temperature=5.0, seed=1
    )
    pipe.chat(TALK)
    assert (
        pipe.chat_batch([asked("what colour is it?")], max_new_tokens=8, temperature=5.0, seed=1)
        == fresh
    )


def test_an_answer_counts_its_tokens_and_says_why_it_ended(pipe):
    (answer,) = pipe.chat_batch([TALK])
    assert (answer.completion_tokens, answer.finish_reason) == (1, "stop")
    assert 36 < answer.prompt_tokens < 120
    long = pipe.chat_batch([TALK], max_new_tokens=3, temperature=100.0, seed=2)[0]
    assert (long.completion_tokens, long.finish_reason) == (3, "length")


def test_answer_ends_at_the_context_length(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model.understanding, "chat_tokens", 40)
    short, long = asked("what is it?"), asked("what " * 8)
    answers = pipe.chat_batch([short, long], temperature=100.0, seed=[1, 2])
    for answer in answers:
        assert answer.prompt_tokens + answer.completion_tokens == 40
        assert answer.finish_reason == "length"
    assert answers[0].completion_tokens > answers[1].completion_tokens


def test_sampled_tokens_depend_only_on_the_seed(pipe):
    talks = [asked("what is it?"), TALK, TALK]
    together = pipe.chat_batch(talks, max_new_tokens=6, temperature=5.0, seed=[1, 2, 3])
    assert together[1].text != together[2].text
    assert together[2] == pipe.chat_batch([TALK], max_new_tokens=6, temperature=5.0, seed=3)[0]
    assert together == pipe.chat_batch(talks, max_new_tokens=6, temperature=5.0, seed=1)
    assert pipe.chat(TALK, max_new_tokens=6, temperature=0.01, seed=4) == pipe.chat(
        TALK, max_new_tokens=6
    )


def test_draws_have_the_probabilities_of_the_scores():
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    scores = (2 * probabilities.log()).expand(20_000, 3)
    draw = choice(Sampling(temperature=2.0, seeds=range(20_000)))
    drawn = draw(torch.zeros(20_000, 1), scores).argmax(1)
    assert torch.allclose(drawn.bincount() / 20_000, probabilities, atol=0.012)
    nucleus = choice(Sampling(temperature=2.0, top_p=0.75, seeds=range(2_000)))
    drawn = nucleus(torch.zeros(2_000, 1), scores[:2_000]).argmax(1)
    assert set(drawn.tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"messages": []}, "ends with a message of the user"),
        ({"messages": asked("")}, "message 1 is empty"),
        ({"messages": asked("what " * 300)}, "the model takes 256 with its answer"),
        ({"messages": asked({"type": "image", "image": "no.png"})}, "no.png does not exist"),
    ],
)
def test_chat_arguments_are_checked_before_any_work(pipe, options, said):
    for stream in (False, True):
        with pytest.raises(UserError, match=said):
            pipe.chat(**{"messages": asked("what?"), "stream": stream, **options})


# --- pieces ---------------------------------------------------------------------------------------


def test_pieces_are_the_answer(pipe):
    for seed in range(8):
        options = {"max_new_tokens": 12, "temperature": 3.0, "seed": seed}
        told = list(pipe.chat(TALK, stream=True, **options))
        assert "".join(told) == pipe.chat(TALK, **options)


def test_no_piece_ends_inside_a_character(tokenizer):
    text = "  ein Käfer \n  и 漢字 🙂  done "
    row = DetokenizerState(tokenizer, 500)
    told = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        row.take(token)
        told.append(row.new_text())
    row.take(row.end)
    told.append(row.new_text())
    assert "".join(told) == row.text() == text.strip()
    assert len([piece for piece in told if piece]) > 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in told)


def test_pieces_of_a_batch_go_to_their_conversations(pipe):
    told = {0: "", 1: ""}
    talks = [asked("what is it?"), TALK]
    answers = pipe.chat_batch(
        talks,
        max_new_tokens=6,
        temperature=5.0,
        seed=1,
        on_part=lambda n, piece: told.update({n: told[n] + piece}),
    )
    assert [told[0], told[1]] == [answer.text for answer in answers]


def test_a_closed_answer_ends_and_the_next_one_comes(pipe, monkeypatch):
    expected = pipe.chat(TALK)
    monkeypatch.setattr(pipe.model.understanding, "chat_tokens", 100_000)
    answer = pipe.chat(TALK, max_new_tokens=100_000, temperature=100.0, seed=1, stream=True)
    next(answer)
    answer.close()
    assert pipe.chat(TALK) == expected  # takes its turn after the other, which 100,000 tokens keep
    for thread in threading.enumerate():
        if thread.name == "triptych-stream":
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_stream_raises_errors_at_the_reader(pipe):
    def stop(number, piece):
        raise KeyError(piece)

    expected = pipe.chat(TALK)
    with pytest.raises(KeyError):
        pipe.chat_batch([TALK], on_part=stop)
    assert pipe.chat(TALK) == expected

    def broken(tell):
        tell(1)
        raise KeyError("broken")

    told = iterate_callback(broken)
    assert next(told) == 1
    with pytest.raises(KeyError, match="broken"):
        next(told)


# --- images in their own shape ------------------------------------------------------------------


def test_images_keep_their_aspect_ratio(tokenizer):
    qwen = built(vlm(min_pixels=48 * 48, max_pixels=96 * 96)).eval()
    panel = UnderstandingModule(qwen)
    shapes = [(48, 48), (100, 30), (400, 100), (10, 10)]
    (patches, grids), tokens = panel.show([disc(size=size) for size in shapes])
    # cells of 16 pixels, each shape to the nearest, at least 9 of them and at most 36
    assert tokens == [9, 12, 36, 9]
    assert grids.tolist() == [[1, 6, 6], [1, 4, 12], [1, 6, 24], [1, 6, 6]]
    assert len(patches) == 4 * sum(tokens)
    assert len(qwen.image_features(patches, grids)) == sum(tokens)


def test_squares_are_shown_otherwise():
    panel = UnderstandingModule(vlm())
    wide = disc(size=(96, 48))
    (patches, grids), tokens = panel.show([wide, disc()])
    assert tokens == [9, 9] and grids.tolist() == [[1, 6, 6]] * 2
    assert torch.equal(patches, panel.show([wide.crop((24, 0, 72, 48)), disc()])[0][0])


def test_pixels_and_shapes_that_make_no_sense_are_refused():
    for sizes in ({"min_pixels": 9}, {"max_pixels": 9}, {"min_pixels": 9, "max_pixels": 8}):
        with pytest.raises(UserError, match="give both, the first the smaller"):
            vlm(**sizes)
    panel = UnderstandingModule(vlm(min_pixels=256, max_pixels=2560))
    with pytest.raises(UserError, match="aspect ratio"):
        panel.show([Image.new("RGB", (5, 2000))])
