"""Columns of an index, and the costs of opening and reading it."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from tar_shards import number_of, sample, shards_of, write
from tokenizers import Tokenizer, models, pre_tokenizers

from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.shards import build_index as indexing
from triptych.data_modules.shards import index_columns
from triptych.data_modules.shards.build_index import build_index, index_shards
from triptych.data_modules.shards.index import (
    COLUMNS,
    ShardIndex,
    write_index,
)
from triptych.data_modules.shards.index_format import IndexContents
from triptych.data_modules.sources import webdataset as shards
from triptych.utils.errors import UserError

MB = 1 << 20

# --- columns --------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer that takes words for tokens."""
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_captions_may_be_counted_in_tokens(tokenizer, tmp_path):
    folder = tmp_path / "shards"
    captions = [b"one two three", b"", b"one", b'{"caption": "one two"}', b"{", b'{"other": 1}']
    kinds = ["txt", "txt", "txt", "json", "json", "json"]
    members = [
        member
        for n, (caption, kind) in enumerate(zip(captions, kinds, strict=True))
        for member in [(f"{n}.jpg", b""), (f"{n}.{kind}", caption)]
    ]
    one, two = write(folder / "a.tar", members), write(folder / "b.tar", sample(9))
    plain = build_index(one)
    (index,) = index_shards([one], tokenizer=tokenizer)
    everything = np.arange(6)
    assert index.caption_lengths(everything, tokens=True).tolist() == [3, 0, 1, 2, 0, 0]
    assert index.keys() == plain.keys() and index.problems == plain.problems
    # Bytes again where one shard is not counted: the two must not be compared.
    assert ShardFolder(folder).open().caption_lengths(everything)[0] == 13
    list(index_shards([one, two], tokenizer=tokenizer / "tokenizer.json"))
    assert ShardFolder(folder).open().caption_lengths(np.array([0, 6])).tolist() == [3, 5]


def test_an_index_may_get_tokens_while_it_is_in_use(tokenizer, tmp_path):
    paths = shards_of(tmp_path / "shards", 2)
    folder = ShardFolder(tmp_path / "shards").open()
    sizes = folder.caption_lengths(np.arange(2))
    list(index_shards(paths, tokenizer=tokenizer))
    assert folder.caption_lengths(np.arange(2)).tolist() == sizes.tolist()
    assert [folder.key(n) for n in range(4)] == [f"{n:08d}" for n in range(4)]
    write(paths[1], sample(7))
    list(index_shards(paths))
    folder = pickle.loads(pickle.dumps(folder))  # as in a worker that starts later
    with pytest.raises(UserError, match="was made again, of another shard, while it was in use"):
        folder.key(2)


def test_tokens_are_counted_once_for_each_tokenizer(tokenizer, tmp_path, monkeypatch):
    (path,) = shards_of(tmp_path / "shards", 1)
    first = next(index_shards([path], tokenizer=tokenizer))
    monkeypatch.setattr(index_columns, "write_index", None)
    assert next(index_shards([path], tokenizer=tokenizer)).tokenizer == first.tokenizer
    monkeypatch.undo()
    words = Tokenizer(models.WordLevel({"!": 0}, unk_token="!"))
    words.save(str(tokenizer / "tokenizer.json"))
    assert next(index_shards([path], tokenizer=tokenizer)).tokenizer != first.tokenizer
    (tokenizer / "tokenizer.json").write_text("{}")
    for wrong, says in [(tokenizer, "is no tokenizer that"), (tmp_path / "x", "nor a folder")]:
        with pytest.raises(UserError, match=says):
            raise next(index_shards([path], tokenizer=wrong))


def test_checksums_tell_which_samples_are_other_ones_now(tmp_path):
    path = write(tmp_path / "a.tar", [m for n in range(5) for m in sample(n)])
    with pytest.raises(UserError, match="has no checksums; take them"):
        index_columns.changed_samples(build_index(path))
    index = next(index_shards([path], checksums=True))
    assert index_columns.changed_samples(index) == []
    content, status = bytearray(path.read_bytes()), path.stat()
    offset, size = index.member(3, "txt")
    content[offset + size - 1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk does it
    assert index_columns.changed_samples(ShardIndex.of(path)) == ["00000003"]


# --- what it costs --------------------------------------------------------------------------------


def test_a_thousand_shards_are_opened_by_one_header_each(tmp_path, monkeypatch):
    paths = shards_of(tmp_path, 4)
    list(index_shards(paths, workers=1))
    for n in range(4, 1000):
        os.link(paths[n % 4], tmp_path / f"{n:04d}.tar")
        os.link(f"{paths[n % 4]}.idx", tmp_path / f"{n:04d}.tar.idx")
    opened, start = [], ShardIndex.__init__

    def count(self, path, shard):
        opened.append(path)
        start(self, path, shard)

    monkeypatch.setattr(ShardIndex, "__init__", count)
    monkeypatch.setattr(ShardIndex, "_body", property(lambda self: 1 / 0))  # nothing of a sample
    monkeypatch.setattr(indexing, "scan_shard", None)
    assert len(ShardFolder(tmp_path).open()) == 2000
    assert len(opened) == len(set(opened)) == 1000


def test_open_files_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 3)
    shards_of(tmp_path, 9)
    folder = ShardFolder(tmp_path).open()
    before = len(os.listdir("/proc/self/fd"))
    for n in [*range(18), 0, 17, 5]:
        assert folder.key(n) == number_of(folder.image_bytes(n)) == f"{n:08d}"
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3
    again = pickle.loads(pickle.dumps(folder))
    assert again.key(17) == number_of(again.image_bytes(17)) == "00000017"


def test_a_shard_that_shrinks_or_goes_away_makes_bad_samples(tmp_path):
    one, two = shards_of(tmp_path, 2)
    folder = ShardFolder(tmp_path).open()
    os.truncate(one, 600)
    two.unlink()
    with pytest.raises(BadSample, match="00000001: shard became shorter"):
        folder.image_bytes(1)
    with pytest.raises(BadSample, match="00000002: shard cannot be read"):
        folder.image_bytes(2)


@pytest.mark.linux
def test_thirty_million_samples_fit_in_little_memory(tmp_path):
    samples, number = 10_000, 3000
    first = tmp_path / "0000.tar"
    first.touch()
    os.truncate(first, 1 << 30)
    rows = np.zeros((samples, COLUMNS), np.uint32)
    rows[:, 0] = 8 * np.arange(1, samples + 1)
    rows[:, 1] = rows[:, 5] = np.arange(1, samples + 1)
    rows[:, 2], rows[:, 6] = 512, np.arange(samples) % 300
    keys = b"".join(b"%08d" % n for n in range(samples))
    status = first.stat()
    write_index(first, IndexContents(status.st_size, status.st_mtime_ns, rows, keys))
    for n in range(1, number):
        os.link(first, tmp_path / f"{n:04d}.tar")
        os.link(f"{first}.idx", tmp_path / f"{n:04d}.tar.idx")

    before = memory_peak(reset=True)
    folder = ShardFolder(tmp_path).open()
    assert len(folder) == 30_000_000 and len(folder.shard_sizes) == number
    for n in np.random.default_rng(0).integers(0, len(folder), 200).tolist():
        assert folder.key(n) == f"{n % samples:08d}" and folder.image_bytes(n) == bytes(512)
        assert folder.caption_lengths(np.array([n])).tolist() == [n % samples % 300]
    assert memory_peak() - before < 200 * MB


def memory_peak(reset=False):
    """Largest resident size of this process in bytes, since the start or the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [s for s in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in s]
    return 1024 * int(line.split()[1])
