"""Samples that cannot be used: replaced, named, counted, and too many of them end a run."""

import io
import logging
import pickle

import pytest
import torch
from builders import SIDE, builder
from PIL import Image
from tar_shards import write

from triptych.data_modules import (
    BadSample,
    BadSamples,
    Ingredient,
    MixedDataModule,
    Reading,
    ShardFolder,
)
from triptych.data_modules.batching.bad_samples import check_texts
from triptych.data_modules.batching.clean_text import clean
from triptych.data_modules.sampling.step_dataset import VALIDATION_SAMPLES
from triptych.interfaces import IMAGE_GENERATION, TEXT_TO_IMAGE, Batch, Preprocessing
from triptych.prompts import SPECIAL_TOKENS
from triptych.utils.errors import UserError


def image(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(folder, captions, damaged=()):
    """A shard of gray images, sample n of shade n."""
    members = []
    for number, caption in enumerate(captions):
        content = b"no image" if number in damaged else image(number)
        members += [(f"{number:03d}.png", content), (f"{number:03d}.txt", caption.encode())]
    write(folder / "a.tar", members)
    return ShardFolder(folder).open()


@pytest.fixture
def known(tokenizer):
    return Preprocessing(tokenizer, max_tokens=256, image_size=SIDE)


def batch_of(number, skipped=()):
    empty = torch.zeros(number, 0, dtype=torch.long)
    keys = [str(n) for n in range(number)]
    return Batch(
        IMAGE_GENERATION, keys, 0, torch.arange(number), empty, empty, skipped=list(skipped)
    )


def test_no_sample_stands_in_for_another_in_validation(tmp_path, known):
    source = shard(tmp_path, [f"caption {n}" for n in range(5)] + [""], damaged=(1, 3))
    module = MixedDataModule({"a": Ingredient(source)}, batch_size=4, max_bad_fraction=1.0)
    module.connect(known)
    module.setup("validate")
    for loader in (module.val_dataloader(), module.predict_dataloader()):
        batches = list(loader)
        assert [batch.keys for batch in batches] == [["000", "002"], ["004"]]
        assert [len(batch.skipped) for batch in batches] == [2, 1]
        numbers = torch.cat([batch.samples for batch in batches]) - VALIDATION_SAMPLES
        assert numbers.tolist() == [0, 2, 4]


def test_good_samples_stand_in_for_bad_ones(tmp_path, known):
    captions = [f"caption {n}" for n in range(5)] + ["red " * 300, ""]
    source = shard(tmp_path, captions, damaged=(1, 3))
    batch = builder(source, TEXT_TO_IMAGE, known)(0, range(7), range(100, 107))
    assert batch.skipped == [
        ("001", "image is damaged"),
        ("003", "image is damaged"),
        ("005", "prompt is too long for the model"),
        ("006", "caption is empty"),
    ]
    assert batch.keys == ["000", "000", "002", "002", "004", "004", "000"]
    assert batch.target_pixels[:, 0, 0, 0].tolist() == [0, 0, 2, 2, 4, 4, 0]
    assert batch.samples.tolist() == list(range(100, 107))
    assert torch.equal(batch.input_ids[1], batch.input_ids[0])


def test_a_batch_without_a_good_sample_is_an_error(tmp_path, known):
    build = builder(shard(tmp_path, ["a", "b"], damaged=(0, 1)), TEXT_TO_IMAGE, known)
    with pytest.raises(UserError, match="none of the 2 samples of batch 9 .* 001: image is dam"):
        build(9, [0, 1], [0, 1])


def test_bad_samples_are_counted_and_the_first_few_are_logged(caplog):
    bad = BadSamples(max_fraction=0.5, logged=2)
    with caplog.at_level(logging.WARNING):
        bad.count(batch_of(8, [("a", "dull"), ("b", "dull"), ("c", "broken")]))
        bad.report()
    assert bad.reasons == {"dull": 2, "broken": 1} and bad.seen == 8
    assert "'a': dull" in caplog.text and "'b': dull" in caplog.text and "'c'" not in caplog.text
    assert "3 of 8 samples left out: 2 dull, 1 broken" in caplog.text


def test_too_many_bad_samples_end_the_run():
    bad = BadSamples(max_fraction=0.01)
    bad.count(batch_of(100, [("a", "dull")] * 2))  # too few were seen to judge
    bad.count(batch_of(100))
    with pytest.raises(UserError, match=r"3 of 201 .* 0\.01 allows: 2 dull, 1 late; the first is"):
        bad.count(batch_of(1, [("z", "late")]))


def test_texts_are_checked_before_a_run(tmp_path, known, caplog):
    captions = [f"caption {n}" for n in range(50)]
    captions[7] = "red " * 300
    readings = [Reading(shard(tmp_path, captions, damaged=(3,)), TEXT_TO_IMAGE, "reds")]
    with caplog.at_level(logging.WARNING):
        check_texts(readings, known, max_fraction=0.02)
    assert "1 of 50 samples left out: 1 prompt is too long for the model" in caplog.text
    with pytest.raises(UserError, match="1 of 50 samples at the beginning of reds .*'007' has"):
        check_texts(readings, known, max_fraction=0.01)
    check_texts(readings, known, max_fraction=0.01, most=7)


def test_a_bad_sample_comes_back_from_a_worker_whole():
    bad = pickle.loads(pickle.dumps(BadSample("k", "is dull", "very")))
    assert (bad.key, bad.reason, bad.detail) == ("k", "is dull", "very")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ufeffa\x01\x02b\x1b[0m", "a b [0m"),
        ("tab\tline\nreturn\r", "tab\tline\nreturn\r"),
        ("pair \ud83d\ude00", "pair \U0001f600"),
        ("caf\ufffd in the old town", "caf\ufffd in the old town"),
    ],
)
def test_captions_are_made_fit_for_a_tokenizer(text, cleaned, tokenizer):
    found = clean(text, "k", "caption")
    assert found == cleaned
    tokenizer(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x" * 20_001, r"sample k: caption is too long .20001 characters, at most 20000"),
        ("\ufffd\ufffdabc", "caption is no UTF-8"),
        ("a lone half \ud83d in a text", "caption is no UTF-8"),
        ("a\x00b", "caption holds a NUL"),
        (None, "caption is no text"),
        (["a"], "caption is no text"),
    ],
)
def test_captions_that_are_none(text, says):
    with pytest.raises(BadSample, match=says):
        clean(text, "k", "caption")


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_caption_cannot_end_its_turn_or_stand_for_an_image(token, tmp_path, known):
    source = shard(tmp_path, ["good", f"a {token} b"])
    batch = builder(source, TEXT_TO_IMAGE, known)(0, [0, 1], [0, 1])
    assert not batch.skipped
    good, odd = (
        ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    )
    number = known.tokenizer.convert_tokens_to_ids(token)
    assert (good == number).sum() == (odd == number).sum()
    assert f"a {token} b" in known.tokenizer.decode(odd)
