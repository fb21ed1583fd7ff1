"""Conversations with images in any message: prompts, labels, batches, and what cannot be used."""

import io
import json

import builders
import pytest
import tar_shards
import torch
from PIL import Image

from triptych.conversations import chat_ids, interleaved_ids
from triptych.data_modules import Collator, ConversationFile, ShardFolder, TaskDataset
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.tools.pack import pack
from triptych.interfaces import IGNORED, INTERLEAVED
from triptych.prompts import IMAGE_PAD, PromptError, token_id

IMAGE = 9  # tokens of an image
TALK = [
    {"role": "user", "content": "draw a red circle"},
    {"role": "assistant", "content": ["here:", {"image": "0.png"}, "a circle."]},
    {"role": "user", "content": [{"image": "1.png"}, "the same shape?"]},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "draw it"},
    {"role": "assistant", "content": [{"type": "image", "image": "2.png"}]},
]


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (48, 48), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def story(key, talk=TALK, **images):
    """Members of one story, of three images unless others are given."""
    images = images or {f"{number}.png": png(40 * number) for number in range(3)}
    members = [(f"{key}.{name}", content) for name, content in images.items()]
    return [*members, (f"{key}.json", json.dumps({"messages": talk}).encode())]


@pytest.fixture
def dataset(tmp_path):
    """Opens the stories given as lists of members."""

    def make(*stories):
        tar_shards.write(tmp_path / "a.tar", [member for each in stories for member in each])
        return TaskDataset(ShardFolder(tmp_path).open(), INTERLEAVED)

    return make


@pytest.fixture(scope="module")
def understanding():
    torch.manual_seed(0)
    model = builders.unified("stage1")
    model.configure_model()
    return model.understanding


def shown(tokenizer, ids):
    return tokenizer.decode(ids).replace("<|image_pad|>" * IMAGE, "<|9|>")


def test_the_assistant_says_img_and_the_image_comes_back(tokenizer):
    talk = [("user", ["draw"]), ("assistant", ["here: ", IMAGE, " done "]), ("user", ["ok", IMAGE])]
    ids, labels = interleaved_ids(tokenizer, talk, 256)
    assert shown(tokenizer, ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\ndraw<|im_end|>\n<|im_start|>assistant\n"
        "here:[IMG]<|vision_start|><|9|><|vision_end|>done<|im_end|>\n"
        "<|im_start|>user\nok<|vision_start|><|9|><|vision_end|><|im_end|>\n"
    )
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned) == "here:[IMG]done<|im_end|>"
    assert all(label in (IGNORED, id) for id, label in zip(ids, labels, strict=True))


def test_a_chat_continues_the_conversation_that_was_learned(tokenizer):
    talk = [("user", ["draw"]), ("assistant", [IMAGE]), ("user", ["why?"]), ("assistant", ["so"])]
    learned, _ = interleaved_ids(tokenizer, talk, 256)
    ids = chat_ids(tokenizer, talk[:3], 256)
    assert learned[: len(ids)] == ids


def test_a_first_image_has_the_prompt_of_generation(tokenizer):
    from triptych.prompts import GENERATION_INSTRUCTION, generation_ids

    asked = GENERATION_INSTRUCTION.format(caption="a red circle")
    ids, _ = interleaved_ids(tokenizer, [("user", [asked]), ("assistant", [IMAGE])], 256)
    alone = generation_ids(tokenizer, "a red circle", 256)
    assert ids[: len(alone)] == alone


def test_a_conversation_that_is_too_long_is_refused(tokenizer):
    talk = [("user", ["draw"]), ("assistant", [IMAGE])] * 20
    with pytest.raises(PromptError, match=r"sample 'k' has \d+ tokens in 40 messages.*takes 256"):
        interleaved_ids(tokenizer, talk, 256, "k")


def test_a_batch_shows_all_images_in_the_order_of_their_places(dataset, understanding):
    data = dataset(story("a"), story("b", TALK[:2], **{"0.png": png(200)}))
    facts = understanding.preprocessing()
    batch = Collator([data], facts)(0, [(0, 0), (0, 1)], [0, 1])
    pad = token_id(facts.tokenizer, IMAGE_PAD)
    assert (batch.input_ids == pad).sum(1).tolist() == [3 * IMAGE, IMAGE]
    images = torch.stack([torch.full((3, 48, 48), 0, dtype=torch.uint8) for _ in range(4)])
    images[:, 0] = torch.tensor([0, 40, 80, 200], dtype=torch.uint8)[:, None, None]
    assert torch.equal(batch.understanding_pixels, facts.image_inputs(images)[0])
    assert batch.position_ids.shape == (3, *batch.input_ids.shape) and batch.may_show
    learned = [facts.tokenizer.decode(row[row != IGNORED]) for row in batch.labels]
    assert learned == [
        "here:[IMG]a circle.<|im_end|>no<|im_end|>[IMG]<|im_end|>",
        "here:[IMG]a circle.<|im_end|>",
    ]
    loss, _ = understanding.step(batch)
    loss.backward()
    assert loss.isfinite()


def test_what_is_said_before_an_image_does_not_depend_on_it(dataset, understanding):
    """The labels' places are right: changing the last image changes no earlier prediction."""
    data = dataset(
        story("a"), story("b", **{f"{n}.png": png(40 * n + 90 * (n == 2)) for n in (0, 1, 2)})
    )
    facts = understanding.preprocessing()
    one, other = (Collator([data], facts)(0, [(0, n)], [0]) for n in (0, 1))
    assert not torch.equal(one.understanding_pixels, other.understanding_pixels)
    with torch.no_grad():
        losses = [float(understanding.vlm.lm_loss(each)) for each in (one, other)]
        assert losses[0] != losses[1]  # the end of the last answer comes after the image
        for each in (one, other):
            last = (each.labels[0] != IGNORED).nonzero()[-1]
            each.labels[0, last], each.label_indices = IGNORED, None
        assert float(understanding.vlm.lm_loss(one)) == float(understanding.vlm.lm_loss(other))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (story("a", **{"0.png": png(0), "2.png": png(0)}), "image of a message is missing"),
        (story("a", **{"0.png": png(0), "1.png": b"no", "2.png": png(0)}), "image of a message is"),
        (story("a", TALK[:1]), "messages without an answer to learn"),
        (story("a", [{"role": "tool", "content": "x"}]), "role of a message is unknown"),
        (story("a", [{"role": "user", "content": [7]}]), "messages are not a list of role and"),
        (story("a", "hello"), "messages are not a list of role and content"),
        (story("a", [{"role": "user", "content": " "}, TALK[3]]), "message is empty"),
        (story("a", TALK * 20), "conversation is too long for the model"),
        (story("a", []), "no 'messages' to learn from"),
    ],
)
def test_a_bad_story_is_counted_by_its_reason_and_replaced(dataset, understanding, members, reason):
    data = dataset(members, story("good"))
    batch = Collator([data], understanding.preprocessing())(0, [(0, 0), (0, 1)], [0, 1])
    assert batch.keys == ["good", "good"]
    ((key, found),) = batch.dropped_samples
    assert key == "a" and found.startswith(reason)


def test_images_are_found_whatever_lies_between_or_around_them(tmp_path):
    members = [*story("a"), ("a.txt", b"x"), ("b.0.png", png(1)), ("b.notes", b"?")]
    members += [("b.1.png", png(2)), ("b.json", b"{}"), *story("c/" + "long" * 60)]
    tar_shards.write(tmp_path / "a.tar", members)
    source = ShardFolder(tmp_path).open()
    assert [source.key(number)[:6] for number in range(3)] == ["a", "b", "c/long"]
    assert source.named_image_bytes(1, "1.png") == png(2)
    assert source.named_image_bytes(1, "0.PNG") == png(1)
    assert source.named_image_bytes(2, "2.png") == png(80)
    with pytest.raises(ValueError, match="missing"):
        source.named_image_bytes(0, "3.png")


def test_a_dot_zero_in_a_name_is_still_a_dot(tmp_path):
    members = [("photo v1.0.jpg", b"x"), ("photo v1.0.txt", b"a"), *tar_shards.sample(3)]
    tar_shards.write(tmp_path / "a.tar", members)
    source = ShardFolder(tmp_path).open()
    assert len(source) == 1
    ((reason, count, keys),) = source.indexes[0].problems
    assert reason.startswith("dot inside of a name") and keys == ["photo v1.0"] and count == 1


def test_json_lines_of_messages_are_packed_into_shards(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(40 * number))
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n")
    source = detect_source(path, tmp_path / "images").open()
    assert isinstance(source, ConversationFile)
    pack(source, tmp_path / "shards", {}, workers=1)
    shards = ShardFolder(tmp_path / "shards").open()
    assert shards.metadata(0)["messages"] == TALK
    for number in range(3):
        assert shards.named_image_bytes(0, f"{number}.png") == png(40 * number)
