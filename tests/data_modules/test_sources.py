"""Data sources: conversation files, image folders, edits; and their samples for each task."""

import csv
import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import SIDE, builder, unified
from PIL import Image
from tar_shards import write

from triptych.data_modules import (
    BadSample,
    Collator,
    ConversationFile,
    ImageFolder,
    ShardFolder,
    TaskDataset,
)
from triptych.data_modules.sources import jsonl_index as lines_module
from triptych.interfaces import (
    IMAGE_GENERATION,
    IMAGE_TO_IMAGE,
    IMAGE_TO_TEXT,
    LANGUAGE_MODELING,
    TEXT_TO_IMAGE,
    TEXT_TO_TEXT,
)
from triptych.prompts import IGNORED
from triptych.utils.errors import UserError

RED, BLUE = (200, 30, 30), (30, 30, 200)


def image(colour=RED, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(buffer, kind)
    return buffer.getvalue()


def talk(*texts):
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


RECORDS = [
    {"id": 7, "image": "a/red.png", "conversations": talk("<image>\nWhat colour?", "Red.")},
    {"conversations": talk("Say yes.", "yes", "Say no.", "no")},
    {"source": "a/red.png", "instruction": "make it blue", "target": "blue.png"},
    {"image": "blue.png", "caption": " a blue square\n"},
]


@pytest.fixture
def folder(tmp_path):
    """Two images, and RECORDS as JSON and as JSONL."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "red.png").write_bytes(image())
    (tmp_path / "blue.png").write_bytes(image(BLUE))
    save(tmp_path / "talk.jsonl", RECORDS)
    (tmp_path / "talk.json").write_text(json.dumps(RECORDS))
    return tmp_path


def save(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def processor():
    return unified("stage1").preprocessing()


def texts(batch, tokenizer):
    return [
        tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


# --- conversation files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_every_kind_of_record_is_read(folder, name):
    source = ConversationFile(folder / name).open()
    assert len(source) == 4 and source.key(2) == "talk-0000002"
    assert source.metadata(0)["conversation"] == [("What colour?", "Red.")]
    assert source.metadata(1)["conversation"] == [("Say yes.", "yes"), ("Say no.", "no")]
    assert [source.has_image(n, "image") for n in range(4)] == [True, False, True, True]
    assert [source.has_image(n, "source") for n in range(4)] == [False, False, True, False]
    assert source.image_bytes(2, "source") == image() and source.image_bytes(2) == image(BLUE)
    assert (source.caption(2), source.caption(3)) == ("make it blue", "a blue square")
    sizes = source.caption_lengths(np.arange(4))
    assert sizes.dtype == np.int64 and sizes.tolist() == [24, 20, 12, 15]
    with pytest.raises(BadSample, match="no image"):
        source.image_bytes(1)
    with pytest.raises(BadSample, match="no caption"):
        source.caption(1)


def test_lines_are_found_once_and_again_when_the_file_changes(folder, monkeypatch):
    scans = []
    scan = lines_module._scan
    monkeypatch.setattr(lines_module, "_scan", lambda *a: scans.append(1) or scan(*a))
    path = folder / "talk.jsonl"
    for _ in range(3):
        assert len(ConversationFile(path).open()) == 4
    assert len(scans) == 1 and (folder / "talk.jsonl.idx").is_file()
    save(path, RECORDS[:2])
    assert len(ConversationFile(path).open()) == 2 and len(scans) == 2
    (folder / "talk.jsonl.idx").write_bytes(b"something else")
    assert len(ConversationFile(path).open()) == 2 and len(scans) == 3


def test_lines_of_a_folder_that_cannot_be_written_to_are_kept_elsewhere(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "talk.jsonl.idx").mkdir()  # in the way of the file, also for root
    assert ConversationFile(folder / "talk.jsonl").open().caption(3) == "a blue square"
    assert list((folder / "cache" / "triptych" / "index").iterdir())


def test_one_bad_line_harms_no_other(tmp_path):
    good = json.dumps(RECORDS[1])
    long = json.dumps({"caption": "x" * (3 << 20)})
    path = tmp_path / "t.jsonl"
    lines = [good, "", "{broken", "[1]", long, "[" * 100_000, good]
    path.write_bytes("\n".join(lines).encode() + b"\n" + b'{"caption": "caf\xe9"}')
    source = ConversationFile(path).open()
    assert len(source) == 7
    for number, says in [(1, "no JSON"), (2, "no JSON object"), (3, "no JSON"), (4, "no JSON")]:
        with pytest.raises(BadSample, match=f"record is {says}"):
            source.caption(number)
    assert source.metadata(0) == source.metadata(5)
    with pytest.raises(BadSample, match="caption is no UTF-8"):
        source.caption(6)
    assert source.caption_lengths(np.array([1, 3])).tolist() == [0, 0]


def test_a_conversation_file_travels_to_workers(folder):
    source = ConversationFile(folder / "talk.jsonl").open()
    source.caption(3)
    assert pickle.loads(pickle.dumps(source)).image_bytes(0) == image()


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a", "", "a\0b", 5, "no.png"]
)
def test_images_outside_of_the_folder_are_never_read(folder, path):
    inside = folder / "inside"
    inside.mkdir()
    (inside / "a").mkdir()
    (folder / "secret.png").write_bytes(image())
    save(inside / "t.jsonl", [{"image": path, "caption": "x"}])
    with pytest.raises(BadSample, match="image (lies outside|is no|cannot be|is missing)|no image"):
        ConversationFile(inside / "t.jsonl").open().image_bytes(0)


def test_a_large_image_is_not_read(folder):
    source = ConversationFile(folder / "talk.json", max_image_bytes=20).open()
    with pytest.raises(BadSample, match="image is too large"):
        source.image_bytes(0)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (talk("a", "b", "c"), "do not take turns"),
        (talk("a", "b")[::-1], "do not take turns"),
        ([], "do not take turns"),
        (talk("a", 3), "do not take turns"),
        (talk("<image>a", "b"), "an image that is not there"),
        ("hello", "no list of messages"),
        ([{"value": "a"}], "no list of messages"),
    ],
)
def test_conversations_that_are_none(tmp_path, messages, says):
    source = ConversationFile(save(tmp_path / "t.jsonl", [{"conversations": messages}])).open()
    with pytest.raises(BadSample, match=says):
        source.metadata(0)


def test_a_system_message_is_left_out_and_two_images_are_refused(tmp_path):
    messages = [{"from": "system", "value": "be nice"}, *talk("a", "b")]
    records = [{"conversations": messages}, {"image": ["1.png", "2.png"]}, {"image": ["1.png"]}]
    source = ConversationFile(save(tmp_path / "t.jsonl", records)).open()
    assert source.metadata(0)["conversation"] == [("a", "b")]
    with pytest.raises(BadSample, match="more than one image"):
        source.has_image(1, "image")
    assert source.has_image(2, "image")


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (None, "t.json", "does not exist"),
        ("", "t.jsonl", "is empty"),
        ("[]", "t.json", "is empty"),
        ("{}", "t.json", "no JSON list"),
        ("[", "t.json", "no JSON that can be read"),
    ],
)
def test_conversation_files_that_are_refused(tmp_path, content, name, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        ConversationFile(tmp_path / name).open()


# --- folders of images --------------------------------------------------------------------------


def test_image_folder_with_caption_files(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name, colour in [("b.png", RED), ("sub/a.JPG", BLUE), ("lone.png", RED), ("b.webp", RED)]:
        kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.lower().split(".")[1]]
        (tmp_path / name).write_bytes(image(colour, kind))
    (tmp_path / "b.txt").write_text(" red one\n")
    (tmp_path / "sub" / "a.txt").write_text("blue")
    with caplog.at_level("WARNING"):
        source = ImageFolder(tmp_path).open()
    assert [source.key(n) for n in range(len(source))] == ["b", "sub/a"]
    assert [source.caption(n) for n in range(2)] == ["red one", "blue"]
    assert source.image(1).size == (SIDE, SIDE) and source.metadata(0) == {}
    assert source.caption_lengths(np.array([1, 0])).tolist() == [4, 9]
    assert "1 second image of one caption" in caplog.text
    assert "1 image without a caption" in caplog.text


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "captions.jsonl"])
def test_a_folder_with_a_table(folder, name, caplog):
    rows = [
        {"file_name": "blue.png", "text": "größer, blue", "style": "flat"},
        {"file_name": "a/red.png", "text": "red", "style": "round"},
        {"file_name": "../secret.png", "text": "no", "style": ""},
        {"file_name": "blue.png", "text": "again", "style": ""},
    ]
    if name.endswith("csv"):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "style"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        save(folder / name, [*rows, {"file_name": "x.png"}, {"text": "y"}])
    with caplog.at_level("WARNING"):
        source = ImageFolder(folder).open()
    assert len(source) == 3 and "1 second row of one image" in caplog.text
    assert source.caption(0) == "größer, blue" and source.metadata(1)["style"] == "round"
    assert source.image_bytes(1) == image() and source.key(1) == "a/red"
    assert source.caption_lengths(np.array([0])).tolist() == [14]
    with pytest.raises(BadSample, match="lies outside"):
        source.image_bytes(2)


def test_folders_of_images_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ImageFolder(tmp_path / "none").open()
    (tmp_path / "a.png").write_bytes(image())
    with pytest.raises(UserError, match=r"holds no image .* put KEY.txt beside"):
        ImageFolder(tmp_path).open()


# --- tasks ----------------------------------------------------------------------------------------


def test_an_edit_shows_the_source_and_makes_the_target(folder, processor):
    source = ConversationFile(folder / "talk.jsonl").open()
    batch = builder(source, IMAGE_TO_IMAGE, processor)(0, [2], [0])
    assert batch.objective == IMAGE_GENERATION and batch.labels is None
    shown = "<|image_pad|>" * processor.image_tokens
    assert texts(batch, processor.tokenizer) == [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{shown}<|vision_end|>\nmake it blue<|im_end|>\n"
        "<|im_start|>assistant\n[IMG]"
    ]
    assert batch.target_pixels[0, :, 5, 5].tolist() == list(BLUE)
    red = torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, SIDE, SIDE)
    assert torch.equal(batch.understanding_pixels, processor.image_inputs(red[None])[0])


def test_an_image_without_source_is_reconstructed_and_decoded_once(folder, processor):
    source = ConversationFile(folder / "talk.jsonl").open()
    build = Collator([TaskDataset(source, IMAGE_TO_IMAGE)], processor)
    asked = []

    def decode(data, *sizes):
        asked.append(sizes)
        return [torch.zeros(3, size, size, dtype=torch.uint8) for size in sizes]

    build.decoder = decode
    batch = build(0, [(0, 3)], [0])
    assert "Please reconstruct the given image." in texts(batch, processor.tokenizer)[0]
    assert asked == [(processor.understanding_size, processor.image_size)]


def test_members_of_an_edit_in_a_shard(tmp_path, processor):
    names = [("k.source.png", image()), ("k.png", image(BLUE)), ("k.txt", b"make it blue")]
    write(tmp_path / "a.tar", names)
    batch = builder(ShardFolder(tmp_path).open(), IMAGE_TO_IMAGE, processor)(0, [0], [0])
    assert "make it blue" in texts(batch, processor.tokenizer)[0]
    assert batch.target_pixels[0, :, 5, 5].tolist() == list(BLUE)


def test_conversations_with_and_without_images_share_a_batch(folder, processor):
    source = ConversationFile(folder / "talk.jsonl").open()
    batch = builder(source, IMAGE_TO_TEXT, processor)(0, [0, 1, 3], [0, 1, 2])
    first, second, third = texts(batch, processor.tokenizer)
    assert "What colour?" in first and "<|image_pad|>" not in second
    assert "Say yes." in second and third.endswith("a blue square<|im_end|>")
    assert len(batch.image_grid_thw) == 2
    learned = batch.labels[1][batch.labels[1] != IGNORED]
    assert processor.tokenizer.decode(learned) == "yes<|im_end|>no<|im_end|>"


def test_text_to_text_reads_no_images(folder, processor):
    source = ConversationFile(folder / "talk.jsonl").open()
    source.image = None
    batch = builder(source, TEXT_TO_TEXT, processor)(0, [1], [0])
    assert batch.objective == LANGUAGE_MODELING and batch.understanding_pixels is None
    batch = builder(source, TEXT_TO_TEXT, processor)(0, [1, 3], [0, 1])
    assert batch.dropped_samples == [("talk-0000003", "no 'conversation' to learn from")]


def test_tasks_of_a_family_mix_in_a_batch(folder, samples, processor):
    edits = ConversationFile(folder / "talk.jsonl").open()
    build = Collator(
        [TaskDataset(samples, TEXT_TO_IMAGE), TaskDataset(edits, IMAGE_TO_IMAGE)], processor
    )
    batch = build(3, [(0, 5), (1, 2), (0, 6)], [10, 11, 12])
    assert batch.keys == [samples.key(5), "talk-0000002", samples.key(6)]
    assert batch.sample_ids.tolist() == [10, 11, 12] and len(batch.image_grid_thw) == 1
    assert ["<|image_pad|>" in text for text in texts(batch, processor.tokenizer)] == [0, 1, 0]
    model = unified("stage2")
    torch.manual_seed(0)
    model.build()
    loss, _ = model.step(batch)
    assert torch.isfinite(loss)


def test_tasks_of_two_families_do_not(samples, processor):
    with pytest.raises(UserError, match="have different losses"):
        Collator(
            [TaskDataset(samples, TEXT_TO_IMAGE), TaskDataset(samples, TEXT_TO_TEXT)], processor
        )
    with pytest.raises(UserError, match="'image_to_video' is unknown; choose one of"):
        TaskDataset(samples, "image_to_video")


def test_a_model_without_a_language_model_takes_no_prompts(folder, processor):
    blind = replace(processor, tokenizer=None)
    source = ConversationFile(folder / "talk.jsonl").open()
    batch = builder(source, IMAGE_TO_IMAGE, blind)(0, [2], [0])
    assert batch.input_ids.shape == (1, 0) and batch.understanding_pixels is None
