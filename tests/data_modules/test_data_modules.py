"""From shards to batches: dataset, skipping, and the assignment of samples to ranks and steps."""

import io
import json
import pickle
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import SIDE, builder, data, unified
from PIL import Image

from triptych.data_modules import (
    BadSample,
    Collator,
    DataSource,
    Decoder,
    ShapesDataModule,
    ShardDataModule,
    ShardFolder,
    TaskDataset,
)
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import (
    VALIDATION_SAMPLES,
    EvaluationDataset,
    StepDataset,
    StepSampler,
    step_loader,
)
from triptych.interfaces import (
    IMAGE_GENERATION,
    IMAGE_TO_TEXT,
    LANGUAGE_MODELING,
    TEXT_TO_IMAGE,
    Preprocessing,
)
from triptych.prompts import IGNORED, PromptConfig
from triptych.utils.errors import UserError
from triptych.utils.images import square


def encoded(kind, size=(20, 30), colour=(200, 30, 30)):
    """An image of one colour in a file format."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def write(path, members):
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def plain(number, caption=None):
    """The members of one good sample."""
    caption = f"caption {number}" if caption is None else caption
    return [(f"{number:05d}.png", encoded("PNG")), (f"{number:05d}.txt", caption.encode())]


def processor(tokenizer, **settings):
    options = {"max_tokens": 256, "image_size": SIDE, "understanding_size": SIDE}
    return Preprocessing(tokenizer, **{**options, **settings})


# --- shards ---------------------------------------------------------------------------------------


def test_every_kind_of_sample_is_read(tmp_path):
    write(
        tmp_path / "a.tar",
        [
            ("j.jpg", encoded("JPEG")),
            ("j.txt", b" a jpeg\n"),
            ("k.jpeg", encoded("JPEG")),
            ("k.json", json.dumps({"caption": "a caption in JSON", "more": 1}).encode()),
            ("p.PNG", encoded("PNG")),
            ("p.txt", "ein Größenvergleich".encode()),
            ("w.webp", encoded("WEBP")),
            ("w.txt", b"a webp"),
            ("w.json", b'{"fact": 2}'),
            ("w.cls", b"7"),
        ],
    )
    folder = ShardFolder(tmp_path).open()
    found = {sample.key: sample for sample in (folder[n] for n in range(len(folder)))}
    assert {key: sample.caption for key, sample in found.items()} == {
        "j": "a jpeg",
        "k": "a caption in JSON",
        "p": "ein Größenvergleich",
        "w": "a webp",
    }
    assert found["k"].metadata["more"] == 1 and found["w"].metadata == {"fact": 2}
    assert found["p"].metadata == {}
    for sample in found.values():
        assert sample.image.mode == "RGB" and sample.image.size == (20, 30)
        assert np.abs(np.array(sample.image)[0, 0].astype(int) - (200, 30, 30)).max() < 10


def test_shards_may_be_unequal_and_numbers_may_have_holes(tmp_path):
    write(tmp_path / "x-000.tar", plain(1) + plain(5) + plain(9))
    write(tmp_path / "x-007.tar", plain(700))
    write(tmp_path / "x-003.tar", [])
    folder = ShardFolder(tmp_path).open()
    assert [folder.key(n) for n in range(len(folder))] == ["00001", "00005", "00009", "00700"]
    assert [folder.caption(n) for n in (3, 0)] == ["caption 700", "caption 1"]


def test_a_source_may_be_a_folder_a_file_or_a_pattern(tmp_path):
    write(tmp_path / "a-0.tar", plain(0))
    write(tmp_path / "a-1.tar", plain(1))
    assert len(ShardFolder(str(tmp_path)).open()) == 2
    assert len(ShardFolder(tmp_path / "a-1.tar").open()) == 1
    assert len(ShardFolder(str(tmp_path / "a-*.tar")).open()) == 2


def test_incomplete_samples_are_left_out_and_counted(tmp_path, caplog):
    image, caption = plain(1)
    lonely = [(name.replace("00001", "00002"), content) for name, content in [caption]]
    blind = [(name.replace("00001", "00003"), content) for name, content in [image]]
    write(tmp_path / "a.tar", [image, caption, *lonely, *blind])
    with caplog.at_level("WARNING"):
        assert len(ShardFolder(tmp_path).open()) == 1
    assert "2 samples (1 no caption, 1 no image) left out" in caplog.text


def test_names_never_become_files_and_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    evil = pickle.dumps(Bomb())
    names = ["../../out", "/abs/olute", "deep/er/k"]
    members = [
        member
        for name in names
        for member in [
            (f"{name}.png", encoded("PNG")),
            (f"{name}.txt", name.encode()),
            (f"{name}.pkl", evil),
            (f"{name}.pth", evil),
        ]
    ]
    shards = tmp_path / "in" / "ner"
    write(shards / "a.tar", members)
    with tarfile.open(shards / "a.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    folder = ShardFolder(shards).open()
    assert len([folder[n] for n in range(len(folder))]) >= 1
    assert len(folder) == 3 and folder.key(0) == "../../out"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, shards / "a.tar.idx"])


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda f: None, "does not exist"),
        (lambda f: f.mkdir(), r"holds no \*.tar shard"),
        (lambda f: write(f / "a.tar", [("a.png", encoded("PNG"))]), "hold no sample with an image"),
        (lambda f: write(f / "a.tar", plain(0)).write_bytes(b"no tar"), "a.tar is damaged"),
        (lambda f: cut(write(f / "a.tar", plain(0))), r"1 sample .1 truncated."),
    ],
)
def test_folders_that_are_refused(prepare, says, tmp_path):
    folder = tmp_path / "shards"
    prepare(folder)
    with pytest.raises(UserError, match=says):
        ShardFolder(folder).open()


def cut(path):
    """End a tar file in the middle of its last member."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size // 2])


@pytest.mark.parametrize(
    ("members", "read", "says"),
    [
        (
            [("k.png", b"no image"), ("k.txt", b"a")],
            lambda f: f.image(0),
            "k: image is damaged",
        ),
        ([("k.png", b""), ("k.json", b"{")], lambda f: f.metadata(0), "its .json is not JSON"),
        (
            [("k.png", b""), ("k.json", b"{}")],
            lambda f: f.caption(0),
            "k: no caption .neither",
        ),
    ],
)
def test_a_broken_sample_is_named(members, read, says, tmp_path):
    write(tmp_path / "a.tar", members)
    with pytest.raises(BadSample, match=says):
        read(ShardFolder(tmp_path).open())


def test_a_folder_travels_to_workers_without_its_open_files(samples):
    samples.image(0)
    copy = pickle.loads(pickle.dumps(samples))
    assert samples._files and not copy._files
    assert copy[5].image.tobytes() == samples[5].image.tobytes()


# --- who gets which sample when -------------------------------------------------------------------


class Numbered(DataSource):
    """Samples that are known by their number alone."""

    name = "numbered"

    def __init__(self, length):
        self.length = length

    def open(self):
        return self

    def __len__(self):
        return self.length

    def key(self, number):
        return str(number)

    caption = image_bytes = key


class Numbers:
    """Stands for a Collator: gives back what it was asked for."""

    def __init__(self, length):
        self.datasets = [TaskDataset(Numbered(length), TEXT_TO_IMAGE)]

    def __call__(self, step, places, samples):
        return SimpleNamespace(
            step=step, numbers=[number for _, number in places], sample_ids=list(samples)
        )


def global_batch(length, batch_size, world, step, seed=0):
    """Numbers and global sample numbers of a step, the ranks' parts joined."""
    build = Numbers(length)
    sampler = GlobalBatchSampler(
        [build.datasets[0].source], Mixture({"all": 1}), batch_size * world, seed=seed
    )
    parts = [StepDataset(build, sampler, rank=rank, world=world)[step] for rank in range(world)]
    return [n for part in parts for n in part.numbers], [s for p in parts for s in p.sample_ids]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_comes_once_an_epoch(world):
    epochs = []
    for epoch in range(2):
        steps = range(epoch * 24 // (2 * world), (epoch + 1) * 24 // (2 * world))
        epochs.append([n for step in steps for n in global_batch(24, 2, world, step)[0]])
        assert sorted(epochs[-1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_epochs_do_not_end_with_a_short_batch():
    numbers = [n for step in range(5) for n in global_batch(10, 4, 1, step)[0]]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))


def test_the_global_batch_is_the_same_on_any_number_of_ranks():
    for step in (0, 3, 11):
        one = global_batch(50, 4, 1, step)
        assert one == global_batch(50, 2, 2, step) == global_batch(50, 1, 4, step)
        assert one[1] == list(range(4 * step, 4 * step + 4))
    assert global_batch(50, 4, 1, 3, seed=1)[0] != global_batch(50, 4, 1, 3)[0]


def test_steps_start_at_the_resumed_step():
    assert list(StepSampler(lambda: 3, 6)) == [3, 4, 5]
    assert len(StepSampler(lambda: 3, 6)) == 6  # of the whole run, as Lightning counts


def test_validation_takes_each_sample_once_with_numbers_of_its_own():
    dataset = EvaluationDataset(Numbers(10), 4, 7)
    seen = [dataset[i] for i in range(len(dataset))]
    assert [n for batch in seen for n in batch.numbers] == list(range(7))
    samples = [s for batch in seen for s in batch.sample_ids]
    assert samples == list(range(VALIDATION_SAMPLES, VALIDATION_SAMPLES + 7))
    assert len(EvaluationDataset(Numbers(3), 4, 100)) == 1


# --- batches --------------------------------------------------------------------------------------


def test_a_generation_batch_is_captions_and_images(samples, tokenizer):
    build = builder(samples, TEXT_TO_IMAGE, processor(tokenizer))
    batch = build(7, [3, 0], [30, 31])
    assert (batch.objective, batch.step, len(batch)) == (IMAGE_GENERATION, 7, 2)
    assert batch.keys == [samples.key(3), samples.key(0)] and batch.sample_ids.tolist() == [30, 31]
    assert batch.target_pixels.shape == (2, 3, SIDE, SIDE)
    assert batch.target_pixels.dtype == torch.uint8 and batch.labels is None
    shown = batch.target_pixels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.array(samples.image(3)))
    for row, mask, number in zip(batch.input_ids, batch.attention_mask, (3, 0), strict=True):
        text = tokenizer.decode(row[mask.bool()])
        assert f"caption: {samples.caption(number)}<|im_end|>" in text and text.endswith("[IMG]")
        assert not mask.diff().gt(0).any()  # right-padded


def test_captions_are_put_as_the_generator_says_in_training_and_in_prediction(shapes_folder):
    model = unified("stage2")
    model.generation.prompt = PromptConfig("published_inference", "published_training")
    module = data(shapes_folder)
    module.connect(model.preprocessing())
    module.setup("predict")
    tokenizer = model.preprocessing().tokenizer

    def prompt(loader):
        batch = next(iter(loader))
        return tokenizer.decode(batch.input_ids[0][batch.attention_mask[0].bool()])

    asked, taught = prompt(module.predict_dataloader()), prompt(module.val_dataloader())
    assert asked.endswith("<|im_start|>assistant\n[IMG]")
    assert taught == asked.replace("[IMG]", "<|im_end|>\n[IMG]")


def test_an_understanding_batch_is_conversations(samples, tokenizer):
    model = unified("stage1")
    build = builder(samples, IMAGE_TO_TEXT, model.preprocessing(), text_only_ratio=0.4)
    batch = build(0, range(8), range(8))
    seeing = len(batch.image_grid_thw)
    assert 0 < seeing < 8 and len(batch.understanding_pixels) == 36 * seeing
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape
    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    learned = batch.labels != IGNORED
    assert torch.equal(batch.labels[learned], batch.input_ids[learned])
    images = 0
    for row, labels, mask, number in zip(
        batch.input_ids, batch.labels, batch.attention_mask, range(8), strict=True
    ):
        text, metadata = tokenizer.decode(row[mask.bool()]), samples.metadata(number)
        turns = metadata["conversation" if "<|image_pad|>" in text else "text_conversation"]
        images += "<|image_pad|>" in text
        assert text.count("<|image_pad|>") in (0, 9)
        answers = "".join(answer.strip() + "<|im_end|>" for _, answer in turns)
        assert tokenizer.decode(labels[labels != IGNORED]) == answers
        assert all(question.strip() in text for question, _ in turns[1:])
    assert images == seeing


def test_text_only_choice_depends_only_on_the_sample(samples):
    model = unified("stage1")
    build = builder(samples, IMAGE_TO_TEXT, model.preprocessing(), text_only_ratio=0.4)
    together = build(0, range(8), range(8))
    apart = [build(0, [n], [n]) for n in range(8)]
    assert len(together.image_grid_thw) == sum(b.image_grid_thw is not None for b in apart)


def test_text_only_batches_have_no_images(samples):
    model = unified("stage1")
    batch = builder(samples, IMAGE_TO_TEXT, model.preprocessing(), text_only_ratio=1.0)(0, [1], [1])
    assert batch.understanding_pixels is None and batch.image_grid_thw is None


def test_another_conversation_of_the_shard_may_be_learned(samples):
    processor = replace(unified("stage1").preprocessing(), max_tokens=512)  # all twelve of them
    batch = builder(samples, IMAGE_TO_TEXT, processor, conversation_key="questions")(0, [2], [2])
    answers = "".join(answer + "<|im_end|>" for _, answer in samples.metadata(2)["questions"])
    assert processor.tokenizer.decode(batch.labels[batch.labels != IGNORED]) == answers


def test_some_turns_of_a_conversation_are_others_every_time(samples, tokenizer):
    processor = unified("stage1").preprocessing()
    build = builder(samples, IMAGE_TO_TEXT, processor, conversation_key="questions", max_turns=3)

    def asked(sample):
        text = tokenizer.decode(build(0, [2], [sample]).input_ids[0])
        return [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>user\n")[1:]]

    everything = [question for question, _ in samples.metadata(2)["questions"]]
    taken = [asked(sample) for sample in range(20)]
    assert all(len(turns) == 3 and turns[0].startswith("<|vision_start|>") for turns in taken)
    found = {turn.split("<|vision_end|>")[-1] for turns in taken for turn in turns}
    assert found == set(everything)
    assert taken[0] == asked(0) and taken[0] != taken[1]


def test_images_without_conversation_are_described(tmp_path):
    write(tmp_path / "a.tar", plain(1, "a red thing"))
    model = unified("stage1")
    build = builder(ShardFolder(tmp_path).open(), IMAGE_TO_TEXT, model.preprocessing())
    batch = build(0, [0], [0])
    text = model.preprocessing().tokenizer.decode(batch.input_ids[0])
    assert "describe the image" in text and text.endswith("a red thing<|im_end|>")


def test_an_image_of_any_shape_is_brought_to_the_published_square(tmp_path, tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write(tmp_path / "a.tar", [("k.png", buffer.getvalue()), ("k.txt", b"noise")])
    dataset = TaskDataset(ShardFolder(tmp_path).open(), TEXT_TO_IMAGE)
    build = Collator([dataset], processor(tokenizer), decoder=Decoder("pillow"))
    batch = build(0, [(0, 0)], [0])
    assert torch.equal(batch.target_pixels[0], square(Image.fromarray(pixels), SIDE))


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("red " * 300, "1 prompt is too long for the model; the first is .*'00004' has"),
        ("", "1 caption is empty; the first is sample '00004': caption is empty"),
    ],
)
def test_captions_that_do_not_fit_stop_a_run_before_it_starts(caption, says, tmp_path, tokenizer):
    write(tmp_path / "a.tar", plain(3) + plain(4, caption) + plain(5))
    module = ShardDataModule(str(tmp_path))
    module.connect(processor(tokenizer))
    with pytest.raises(UserError, match=says):
        module.setup("fit")


def test_a_folder_with_other_shapes_is_refused(shapes_folder):
    with pytest.raises(UserError, match="holds another shapes data set"):
        ShapesDataModule(str(shapes_folder)).prepare_data()
    with pytest.raises(UserError, match="is not a shapes data set"):
        ShapesDataModule(str(shapes_folder / "train")).prepare_data()


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="'image_to_video' is unknown"):
        ShardDataModule("x", tasks=["image_to_video"])


def test_a_loader_worker_gives_the_same_batches(shapes_folder, tokenizer):
    def first(workers):
        module = data(shapes_folder, "stage2", num_workers=workers, num_val_samples=4)
        module.connect(processor(tokenizer))
        module.setup("fit")
        return next(iter(module.val_dataloader()))

    here, there = first(0), first(1)
    assert here.keys == there.keys and torch.equal(here.input_ids, there.input_ids)
    assert torch.equal(here.target_pixels, there.target_pixels)


def test_previews_are_those_of_the_validation_set(shapes_folder, tokenizer):
    module = data(shapes_folder)
    module.connect(processor(tokenizer))
    module.setup("fit")
    expected = ShardFolder(shapes_folder / "eval").open()
    shown = module.preview(IMAGE_GENERATION, 3, "caption")
    assert [sample.text for sample in shown] == [expected.caption(n) for n in range(3)]
    assert len(module.preview(IMAGE_GENERATION, 99, "caption")) == 16
    assert module.preview(LANGUAGE_MODELING, 3, "caption") == []


def test_batches_are_pinned_where_there_is_a_gpu(monkeypatch):
    """Else each copy to the device would be waited for."""
    for gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert step_loader([], None, 0).pin_memory is gpu


def test_ranks_share_a_batch_in_equal_parts():
    data = ShapesDataModule(batch_size=6, shared_batch=True)
    assert data.rank_batch_size == 6
    data.trainer = SimpleNamespace(world_size=3)
    assert data.rank_batch_size == 2 and ShapesDataModule(batch_size=6).rank_batch_size == 6
    data.trainer.world_size = 4
    with pytest.raises(UserError, match="the 4 ranks share batches of 6 .* a multiple of 4"):
        _ = data.rank_batch_size
