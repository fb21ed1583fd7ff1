"""Untrusted data: irregular files are refused, and a bad record drops only its sample."""

import io
import json
import os
import socket
import time

import pytest
from PIL import Image
from safetensors.torch import save_file
from tar_shards import sample, write

from triptych.data_modules import BadSample, ConversationFile, ShardFolder
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.features.cache import open_feature_cache, read_manifest
from triptych.data_modules.features.feature_shard import FeatureShard, read_metadata
from triptych.data_modules.shards.build_index import build_index
from triptych.data_modules.shards.index_columns import add_checksums, add_token_counts
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.streaming.urls import open_url
from triptych.data_modules.tools.pack import pack, skipped
from triptych.evaluation.image_sources import read_images
from triptych.utils.errors import UserError
from triptych.utils.images import open_image


def png(colour=(9, 9, 9)):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def stream(path):
    open_url(str(path))


def conversations(path):
    ConversationFile(path).open()


def score(path):
    next(entry for entry in read_images(path.parent) if entry.state == "unreadable")
    raise UserError("unreadable")


# Name of a file -> who opens it.
DOORS = {
    "a.tar": [build_index, lambda path: ShardFolder(path.parent).open(), stream, score],
    "a.tar.gz": [stream],
    "a.jsonl": [lambda path: detect_source(path).open(), conversations],
    "a.json": [lambda path: detect_source(path).open(), conversations],
    "a.csv": [lambda path: detect_source(path).open()],
    "a.parquet": [
        lambda path: detect_source(path).open(),
        lambda path: detect_source(path.parent).open(),
    ],
    "manifest.json": [lambda path: read_manifest(path.parent)],
    "a.tar.features.safetensors": [
        lambda path: FeatureShard(path) if read_metadata(path) else fail()
    ],
    "a.png": [open_image],
    "tokenizer.json": [lambda path: add_token_counts(build_index(a_shard(path.parent)), path)],
}


def a_shard(folder):
    return write(folder / "a.tar", sample(1))


def fail():
    raise UserError("no features")


def put(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "socket":
        place = os.getcwd()
        os.chdir(path.parent)  # its path may be longer than a socket's
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(place)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "dangling link", "socket"])
@pytest.mark.parametrize("name", DOORS)
def test_irregular_data_files_are_refused_within_a_second(name, kind, tmp_path):
    for number, door in enumerate(DOORS[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        put(kind, folder / name)
        before = time.monotonic()
        with pytest.raises((UserError, BadSample, SystemExit)):
            door(folder / name)
        assert time.monotonic() - before < 1, (name, kind, number)


@pytest.mark.parametrize("beside", [".idx"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_pipes_among_data_files_do_not_block(kind, beside, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "a.tar", sample(1))
    put(kind, tmp_path / f"a.tar{beside}")
    (tmp_path / "talk.jsonl").write_text('{"caption": "x", "image": "a.png"}\n')
    put(kind, tmp_path / f"talk.jsonl{beside}")
    with pytest.raises(UserError, match="a.tar.idx"):
        ShardFolder(tmp_path).open()
    assert len(ConversationFile(tmp_path / "talk.jsonl").open()) == 1


def test_a_shard_that_became_a_fifo_is_a_bad_sample(tmp_path):
    folder = ShardFolder(write(tmp_path / "a.tar", sample(1))).open()
    (tmp_path / "a.tar").unlink()
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(BadSample, match="shard cannot be read"):
        folder.caption(0)
    with pytest.raises(UserError, match="named pipe"):
        add_checksums(folder.indexes[0])


def test_a_saved_data_set_with_a_fifo_in_it(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    os.mkfifo(tmp_path / "data-00000.arrow")
    with pytest.raises(UserError, match="named pipe"):
        detect_source(tmp_path).open()


@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 100_000, '{"_data_files": 5}'])
def test_saved_data_set_with_invalid_json(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        detect_source(tmp_path).open()


# --- one bad record, one bad sample ---------------------------------------------------------------

DEEP = "[" * 100_000
# A record of JSON lines that cannot be used -> why.
LINES = {
    "{": "record is no JSON",
    DEEP: "record is no JSON",
    '{"image": "a.png", "caption": ' + DEEP: "record is no JSON",
    '{"image": "a.png", "caption": "x", "n": 1' + "0" * 5000 + "}": "record is no JSON",
    '{"image": "a.png", "image": "b.png", "caption": "x"}': "record is no JSON",
    '"text"': "record is no JSON object",
    "[1, 2]": "record is no JSON object",
    "null": "record is no JSON object",
    '{"image": "a.png", "caption": "%s"}' % ("x" * (2 << 20)): "record is too long",
    '{"image": "a.png", "caption": 5}': "caption",
    '{"image": "a.png", "caption": null}': "caption",
    '{"image": "a.png", "caption": {"text": "x"}}': "caption",
    '{"image": "a.png"}': "caption",
    '{"image": {}, "caption": "x"}': "image",
    '{"image": 5, "caption": "x"}': "image is no path",
    '{"image": ["a.png", "a.png"], "caption": "x"}': "image",
    '{"image": "", "caption": "x"}': "image",
    '{"caption": "x"}': "image",
    '{"image": "../../etc/passwd", "caption": "x"}': "outside",
    '{"image": "/etc/passwd", "caption": "x"}': "outside",
    '{"image": "a.png\\u0000", "caption": "x"}': "no file that can be read",
    '{"image": "gone.png", "caption": "x"}': "is missing",
    '{"image": "fifo.png", "caption": "x"}': "no file that can be read",
    '{"image": "text.png", "caption": "x"}': "no JPEG",
}
GOOD = [{"image": "a.png", "caption": f"good {n}"} for n in range(3)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "text.png").write_text("a text")
    os.mkfifo(tmp_path / "fifo.png")
    return tmp_path


def packed(source, out):
    """(captions that were packed, reason -> samples that were not)"""
    lost = skipped(pack(source.open(), out, {"source": "t"}, workers=1))
    try:
        shards = ShardFolder(out).open()
    except UserError:
        return [], lost
    return [shards.caption(n) for n in range(len(shards))], lost


@pytest.mark.parametrize("columns", [{}, {"image_column": "image", "caption_column": "caption"}])
@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_bad_line_costs_one_sample(number, columns, folder):
    line, why = [*LINES.items()][number]
    good = [json.dumps(record) for record in GOOD]
    (folder / "t.jsonl").write_text("\n".join([good[0], line, *good[1:]]))
    captions, lost = packed(detect_source(folder / "t.jsonl", **columns), folder / "out")
    assert captions == ["good 0", "good 1", "good 2"]
    assert lost.total() == 1
    (reason,) = lost
    assert why in reason or (why == "record is too long" and reason == "record is no JSON")


def test_a_bad_line_may_come_first(folder):
    (folder / "t.jsonl").write_text("\n".join(["{", "[]", '{"other": 1}', *map(json.dumps, GOOD)]))
    table = detect_source(folder / "t.jsonl", caption_column="caption")
    captions, lost = packed(table, folder / "out")
    assert len(captions) == 3 and lost.total() == 3


def table(folder, name, *rows, head=b"file_name,text"):
    (folder / name).write_bytes(b"\n".join([head, b"a.png,good 0", *rows, b"a.png,good 1"]))
    return folder / name


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"a.png," + b"x" * (3 << 20), "record is too long"),
        (b'a.png,"' + b"x" * (3 << 20) + b'"', "record is too long"),
        (b"a.png,caf\xe9", "caption is no UTF-8"),
        (b"a.png,\xff\xfe\x00 other encoding, of a long text that is readable", "caption is no"),
        (b"\xff.png,x", "image is missing"),
        (b"a.png", "caption is no text"),
        (b"/etc/passwd,x", "outside"),
        (b"../a.png,x", "outside"),
        (b"a.png\x00,x", "no file that can be read"),
        (b",x", "image is no path"),
    ],
)
def test_a_bad_row_of_a_csv_costs_one_sample(row, why, folder):
    captions, lost = packed(detect_source(table(folder, "t.csv", row)), folder / "out")
    assert captions == ["good 0", "good 1"] and lost.total() == 1
    assert why in next(iter(lost))


def test_unused_columns_may_hold_anything(folder):
    rows = [b"a.png,fine,caf\xe9", b"a.png,too,1,2,3,4", b"a.png,\xc3\xbc,\x00"]
    path = table(folder, "t.csv", *rows, head=b"file_name,text,more")
    captions, lost = packed(detect_source(path), folder / "out")
    assert captions == ["good 0", "fine", "too", "ü", "good 1"] and not lost


def test_rows_with_more_fields_than_names_are_packed_from_a_folder(folder):
    for n, name in enumerate(("b.png", "c.png")):
        (folder / name).write_bytes(png((n, n, n)))
    rows = [b"b.png,fine,caf\xe9,beyond,5", b"c.png," + b"x" * (3 << 20)]
    table(folder, "metadata.csv", *rows, head=b"file_name,text,more")
    captions, lost = packed(detect_source(folder), folder / "out")
    assert captions == ["good 0", "fine"] and not lost


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "struct"])
def test_non_utf8_text_in_parquet_drops_one_sample(kind, folder):
    import pyarrow as arrow
    from pyarrow import parquet

    large = kind == "large_string"
    raw = arrow.array(
        [b"good 0", b"caf\xe9", None, b"good 1"],
        arrow.large_binary() if large else arrow.binary(),
    )
    text = arrow.Array.from_buffers(
        arrow.large_string() if large else arrow.string(), 4, raw.buffers()
    )
    text = text.dictionary_encode() if kind == "dictionary" else text
    image = arrow.array([png()] * 4, arrow.binary())
    if kind == "struct":
        path = arrow.Array.from_buffers(arrow.string(), 4, raw.buffers())
        image = arrow.StructArray.from_arrays([image, path], ["bytes", "path"])
    parquet.write_table(arrow.table({"image": image, "text": text}), folder / "t.parquet")
    captions, lost = packed(detect_source(folder / "t.parquet"), folder / "out")
    assert captions == ["good 0", "good 1"]
    assert lost == {"caption is no UTF-8": 1, "caption is no text": 1}


def test_saved_data_set_with_non_utf8_text(folder):
    import datasets
    import pyarrow as arrow

    raw = arrow.array([b"good 0", b"caf\xe9", b"good 1"], arrow.binary())
    text = arrow.Array.from_buffers(arrow.string(), 3, raw.buffers())
    rows = arrow.table({"image": arrow.array([png()] * 3), "text": text})
    datasets.Dataset(rows).save_to_disk(str(folder / "saved"))
    captions, lost = packed(detect_source(folder / "saved"), folder / "out")
    assert captions == ["good 0", "good 1"] and lost == {"row cannot be read": 1}


def test_a_damaged_row_group_costs_its_rows(folder):
    import pyarrow as arrow
    from pyarrow import parquet

    rows = [{"image": png(), "text": f"row {n} " + "word " * 50} for n in range(6)]
    path = folder / "t.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2, compression="gzip")
    with parquet.ParquetFile(path) as file:
        place = file.metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start + 20 : start + place.total_compressed_size] = bytes(place.total_compressed_size - 20)
    path.write_bytes(data)
    captions, lost = packed(detect_source(path), folder / "out")
    assert [caption[:5] for caption in captions] == ["row 0", "row 1", "row 4", "row 5"]
    assert lost == {"rows are damaged": 2}


def test_parquet_files_of_other_columns_are_refused_before_work(folder):
    import pyarrow as arrow
    from pyarrow import parquet

    for name, column in (("a", "text"), ("b", "words")):
        rows = [{"image": png(), column: "x"}]
        parquet.write_table(arrow.Table.from_pylist(rows), folder / f"{name}.parquet")
    with pytest.raises(UserError, match="b.parquet has no column 'text'"):
        detect_source(folder).open()


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ('{"caption": 5}', "caption is no text"),
        ('{"caption": {}}', "caption is no text"),
        ('{"caption": null}', "no caption"),
        ('{"caption": "\\ud800"}', "caption is no UTF-8"),
        ('{"caption": 5, "more": "x"}', "caption is no text"),
        ('{"caption": "x", "n": NaN}', "metadata is not JSON"),
        ('{"caption": "x", "n": 1' + "0" * 5000 + "}", "its .json is not JSON"),
        (DEEP, "its .json is not JSON"),
        ("[]", "its .json is not a JSON object"),
    ],
)
def test_metadata_of_a_shard_that_cannot_be_packed_cost_one_sample(metadata, why, folder):
    members = [("a.png", png()), ("a.txt", b"good")]
    bad = [("b.png", png()), ("b.json", metadata.encode())]
    shards = ShardFolder(write(folder / "a.tar", members + bad))
    captions, lost = packed(shards, folder / "out")
    assert captions == ["good"] and list(lost) == [why]


def test_half_a_character_in_facts_is_packed_as_text_that_everyone_reads(folder):
    record = '{"image": "a.png", "caption": "x", "more": "\\ud800"}'
    (folder / "t.jsonl").write_text(f"{json.dumps(GOOD[0])}\n{record}\n")
    captions, lost = packed(detect_source(folder / "t.jsonl"), folder / "out")
    assert captions == [GOOD[0]["caption"]] and list(lost) == ["its JSON is no UTF-8"]


@pytest.mark.parametrize("turns", [5, "text", {"a": 1}, [1], [[1]], [["q"]], [["q", 5]], [[]]])
@pytest.mark.parametrize("key", ["conversation", "text_conversation"])
def test_conversations_of_another_shape_are_bad_samples(key, turns, folder, processor):
    metadata = json.dumps({"caption": "x", key: turns}).encode()
    shards = ShardFolder(write(folder / "a.tar", [("a.png", png()), ("a.json", metadata)])).open()
    share = 1.0 if key == "text_conversation" else 0.0
    for most in (None, 2):
        dataset = TaskDataset(shards, "image_to_text", text_only_ratio=share, max_turns=most)
        with pytest.raises(BadSample, match="conversation|question|answer"):
            dataset.prompt(0, 0, processor)


@pytest.fixture(scope="module")
def processor():
    from builders import unified

    return unified("stage1").preprocessing()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "5", '{"a": 1}', "", "\xff\xfe"])
def test_a_conversation_list_that_is_none_is_one_sentence(text, folder):
    (folder / "t.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="t.json is (no JSON|UTF-16; save)"):
        ConversationFile(folder / "t.json").open()


@pytest.mark.parametrize("line", ["{", "[" * 10_000, "5", '{"shard": 5}', '{"samples": "x"}', ""])
def test_a_manifest_of_packing_that_is_none(line, folder):
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    source = detect_source(folder / "t.jsonl").open()
    pack(source, folder / "out", {"source": "t"}, samples_per_shard=2, workers=1)
    manifest = folder / "out" / "pack.jsonl"
    first, *rest = manifest.read_text().splitlines()
    manifest.write_text("\n".join([first, line, *rest[1:]]) + "\n")
    again = pack(source, folder / "out", {"source": "t"}, samples_per_shard=2, workers=1)
    assert [shard.samples for shard in again] == [2, 1]
    manifest.write_text("\n".join([line, *rest]) + "\n")
    with pytest.raises(UserError, match="damaged|another data set|packed otherwise"):
        pack(source, folder / "out", {"source": "t"}, samples_per_shard=2, workers=1)


@pytest.mark.parametrize("problems", ['[["a", 1]]', '[["a", "b", []]]', "5", "[" * 10_000, "[5]"])
def test_problems_of_an_index_that_are_none(problems, tmp_path):
    from triptych.data_modules.shards import index_format as index

    path = write(tmp_path / "a.tar", sample(1))
    contents = build_index(path).contents()
    contents.problems = [index.Problem("x", 1, ["k"])]
    data = index.encode(contents)
    old = json.dumps(contents.problems).encode()
    body = data[index.HEADER.size : -len(old)] + problems.encode()
    header = index.Header._make(index.HEADER.unpack(data[: index.HEADER.size]))
    header = header._replace(
        header_crc=0, body_crc=index.zlib.crc32(body), problems_size=len(problems)
    )
    header = header._replace(header_crc=index.header_crc_of(header))
    (tmp_path / "a.tar.idx").write_bytes(index.HEADER.pack(*header) + body)
    with pytest.raises(UserError, match="a.tar.idx is damaged"):
        ShardFolder(tmp_path).open()


def test_features_of_another_shape_are_refused(tmp_path):
    import torch

    write(tmp_path / "a.tar", sample(1))
    rows = {"features": torch.zeros(2, 1, 1, 1), "keys": torch.zeros(8, dtype=torch.uint8)}
    for ends in ([1], [1, 2, 3], [-5, 900]):
        save_file({**rows, "key_ends": torch.tensor(ends)}, tmp_path / "x.safetensors")
        if len(ends) != 2:
            with pytest.raises(UserError, match="x.safetensors cannot be read"):
                FeatureShard(tmp_path / "x.safetensors")
    assert open_feature_cache(ShardFolder(tmp_path).open()) is None
