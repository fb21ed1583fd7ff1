"""The index of shards: contents, damaged archives, validation and writing."""

import errno
import gzip
import os
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tar_shards import sample, shards_of, write

from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.shards import build_index as indexing
from triptych.data_modules.shards import identity
from triptych.data_modules.shards.build_index import build_index, index_shards
from triptych.data_modules.shards.index import (
    ShardIndex,
    index_paths,
    write_index,
)
from triptych.utils.errors import UserError
from triptych.utils.listing import tar

MB = 1 << 20


def problems(index):
    return {problem.reason: (problem.samples, problem.keys) for problem in index.problems}


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    "key", ["{}", "folder/of/sa_{}", "Größe {}", "k" * 120 + "/" + "n" * 60 + "{}"]
)
def test_member_offsets_equal_those_of_tarfile(form, key, tmp_path):
    members = [member for n in range(5) for member in sample(n, key.format(n), repeat=1 + 50 * n)]
    index = build_index(write(tmp_path / "a.tar", members, format=form))
    assert index.keys() == [key.format(n) for n in range(5)] and index.problems == []
    roles = {"jpg": "image", "json": "json", "txt": "txt"}
    with tarfile.open(tmp_path / "a.tar") as archive:
        for n, member in enumerate(archive):
            role = roles[member.name.rpartition(".")[2]]
            assert index.member(n // 3, role) == (member.offset_data, member.size)


def test_roles_of_images(tmp_path):
    names = ["a.source.PNG", "a.target.jpg", "a.txt", "b.png", "b.jpg", "b.json", "b.npy", "b.pkl"]
    index = build_index(write(tmp_path / "a.tar", [(name, name.encode()) for name in names]))
    folder = ShardFolder(tmp_path).open()
    assert [folder.image_bytes(n) for n in (0, 1)] == [b"a.target.jpg", b"b.jpg"]  # jpg before png
    assert folder.image_bytes(0, "source") == b"a.source.PNG"
    with pytest.raises(BadSample, match="sample b: no source"):
        folder.image_bytes(1, "source")
    assert index.keys() == ["a", "b"]


def test_skipped_samples_are_counted_by_reason_with_examples(tmp_path):
    lonely = [(f"l{n}.jpg", b"") for n in range(7)]
    members = [
        *sample(1),
        *[("blind.txt", b"a"), ("blind.json", b"{}")],
        *lonely,
        *[("twice.jpg", b"1"), ("twice.jpg", b"2"), ("twice.txt", b"a")],
        *sample(2),
        *sample(1),
    ]
    index = build_index(write(tmp_path / "a.tar", members))
    assert index.keys() == ["00000001", "00000002"]
    assert problems(index) == {
        "no image": (1, ["blind"]),
        "no caption": (7, ["l0", "l1", "l2", "l3", "l4"]),
        "two members of one kind": (1, ["twice"]),
        "duplicate key": (1, ["00000001"]),
    }


def test_members_of_a_key_that_stand_apart_are_not_joined(tmp_path):
    first, second = sample(1), sample(2)
    write(tmp_path / "a.tar", [first[0], second[0], first[2], second[2]])
    with pytest.raises(UserError, match=r"next to it: 4 samples \(2 duplicate key, 2 no caption\)"):
        ShardFolder(tmp_path).open()


def test_links_and_sparse_files_are_no_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("k.jpg", tarfile.SYMTYPE),
            ("k.jpeg", tarfile.LNKTYPE),
            ("k.png", b"3"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            archive.addfile(info)
        info = tarfile.TarInfo("k.txt")
        archive.addfile(info)
    assert problems(build_index(path)) == {"a member is a link": (1, ["k"])}


def test_shards_of_webdataset_are_read(tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for n in range(3):
            writer.write({"__key__": f"k{n}", "jpg": b"j" * 1000 * n, "txt": f"text {n}"})
    folder = ShardFolder(tmp_path).open()
    assert [(folder.key(n), folder.caption(n)) for n in range(3)] == [
        (f"k{n}", f"text {n}") for n in range(3)
    ]


def test_caption_sizes_are_known_without_reading(tmp_path):
    write(tmp_path / "a.tar", [("a.jpg", b""), ("a.txt", b"four"), ("a.json", b"{" * 50)])
    write(tmp_path / "b.tar", [("b.jpg", b""), ("b.json", b"{" * 9)] + sample(3))
    folder = ShardFolder(tmp_path).open()
    sizes = folder.caption_lengths(np.array([2, 0, 1, 0]))
    assert sizes.tolist() == [44, 4, 9, 4] and sizes.dtype == np.int64
    assert folder.shard_sizes.tolist() == [1, 2] and not folder._files


# --- where the archive is damaged -----------------------------------------------------------------


def test_both_sides_of_a_hole_are_given_up(tmp_path):
    path = write(tmp_path / "a.tar", [m for n in range(6) for m in sample(n)])
    with tarfile.open(path) as archive:
        hole = archive.getmember("00000002.json").offset
    content = path.read_bytes()
    path.write_bytes(content[:hole] + bytes(1024) + content[hole + 1024 :])
    index = build_index(path)
    assert index.keys() == [f"0000000{n}" for n in (0, 1, 3, 4, 5)]
    assert problems(index) == {tar.ZEROS: (1, ["00000002"])}


def test_wrong_size_in_a_header_is_detected(tmp_path):
    path = write(tmp_path / "a.tar", [m for n in range(4) for m in sample(n)])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        member = archive.getmember("00000001.json")
    member.size = 1 << 30
    content[member.offset : member.offset + 512] = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(content)
    index = build_index(path)
    assert index.keys() == ["00000000", "00000002", "00000003"]
    assert problems(index) == {"damaged header": (1, ["00000001"])}


def test_a_name_that_was_cut_with_its_long_name_lost_does_not_save_its_sample(tmp_path):
    long = "größe" + "x" * 120
    members = [*sample(0), *sample(1, long), *sample(2)]
    path = write(tmp_path / "a.tar", members)
    with tarfile.open(path) as archive:
        first = archive.getmember(f"{long}.jpg").offset
    content = bytearray(path.read_bytes())
    content[first] ^= 1
    path.write_bytes(content)
    assert build_index(path).keys() == ["00000002"]
    assert problems(build_index(path)) == {"damaged header": (2, ["00000000", long])}


def test_a_damaged_header_costs_one_look_for_the_next(tmp_path, monkeypatch):
    members = [m for n in range(40) for m in sample(n)]
    path = write(tmp_path / "a.tar", members)
    calls = []
    pread = os.pread

    def count(*arguments):
        calls.append(arguments[1])
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", count)
    build_index(path)
    whole = len(calls)
    with tarfile.open(path) as archive:
        headers = [archive.getmember(f"{n:08d}.json").offset for n in range(0, 40, 4)]
    content = bytearray(path.read_bytes())
    for header in headers:
        content[header] ^= 1
    path.write_bytes(content)
    calls.clear()
    assert problems(build_index(path))["damaged header"][0] == len(headers) == 10
    assert len(calls) <= whole + len(headers)
    assert max(calls) <= tar.CHUNK


# --- bombs ----------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    """Fails if more than 64 MB are taken at once in a test."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * MB


def test_an_archive_that_expands_is_refused(tmp_path, memory):
    path = tmp_path / "a.tar"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(MB))
    with pytest.raises(UserError, match="a.tar is gzipped"):
        ShardFolder(path).open()
    path.rename(tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match="are gzipped"):
        ShardFolder(tmp_path).open()


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"])
def test_a_header_that_claims_a_gigabyte_takes_none(kind, tmp_path, memory):
    info = tarfile.TarInfo("k.jpg")
    info.type, info.size = kind, 1 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, (1 << 30) + 10240 if kind == b"0" else MB)  # true, or a lie
    write(tmp_path / "b.tar", sample(1))
    folder = ShardFolder([tmp_path / "b.tar", path]).open()
    assert [folder.key(n) for n in range(len(folder))] == ["00000001"]


def test_members_above_the_limits_are_not_read(tmp_path, memory):
    path = write(
        tmp_path / "a.tar",
        [
            ("a.jpg", b""),
            ("a.txt", b"x" * 10 * MB),
            ("b.jpg", b"y" * 2 * MB),
            ("b.json", b"[" * MB),
        ],
    )
    folder = ShardFolder(path, max_image_bytes=MB).open()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(BadSample, match=r"a: txt is too large \(10,485,760 bytes of 1,048,576\)"):
        folder.caption(0)
    with pytest.raises(BadSample, match="b: image is too large"):
        folder.image_bytes(1)
    assert tracemalloc.get_traced_memory()[1] - before < MB
    with pytest.raises(BadSample, match="b: its .json is not JSON"):  # nested a million deep
        folder.metadata(1)


def test_non_object_json_is_a_bad_sample(tmp_path):
    write(
        tmp_path / "a.tar", [("a.jpg", b""), ("a.json", b"[1]"), ("b.jpg", b""), ("b.json", b"{}")]
    )
    folder = ShardFolder(tmp_path).open()
    with pytest.raises(BadSample, match="a: its .json is not a JSON object"):
        folder.caption(0)
    with pytest.raises(BadSample, match="b: no caption"):
        folder.caption(1)


# --- when it is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; download it again"),
        (b"<html>404</html>" * 100, "there is no tar header in it; download it again"),
        (gzip.compress(b"x", mtime=0), "is gzipped"),
    ],
)
def test_invalid_shards_are_named_and_the_others_indexed(content, says, tmp_path):
    good = shards_of(tmp_path, 5)
    (tmp_path / "0002x.tar").write_bytes(content)
    with pytest.raises(UserError, match=f"0002x.tar .*{says}"):
        ShardFolder(tmp_path).open()
    assert all(Path(f"{path}.idx").exists() for path in good)


def test_a_link_to_a_shard_that_is_gone_is_refused_by_name(tmp_path):
    shards_of(tmp_path, 1)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(UserError, match="gone.tar cannot be read: No such file"):
        ShardFolder(tmp_path).open()


@pytest.mark.parametrize("change", ["size", "content"])
def test_foreign_index_is_refused_and_rebuilt_on_request(change, tmp_path):
    path = write(tmp_path / "a.tar", sample(1))
    build_index(path)
    if change == "size":
        status = path.stat()
        write(path, [m for n in range(9) for m in sample(n)])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        path.write_bytes(path.read_bytes().replace(b"00000001 ", b"00000002 "))
        os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=f"a.tar.idx is not of the shard as.*index {tmp_path}`"):
        ShardFolder(tmp_path).open()
    (index,) = index_shards([path])
    assert len(index) == len(ShardFolder(tmp_path).open()) == (9 if change == "size" else 1)


def test_an_index_without_a_probe_and_of_another_time_is_made_again(tmp_path):
    """Older versions took none: whether it fits cannot be known."""
    path = write(tmp_path / "a.tar", sample(1))
    build_index(path)
    write_index(path, replace(ShardIndex(next(index_paths(path)), path).contents(), probe=b""))
    path.write_bytes(path.read_bytes().replace(b"00000001 ", b"00000002 "))
    os.utime(path, ns=(1, 1))
    assert ShardFolder(tmp_path).open().caption(0).startswith("00000002 ")
    assert ShardIndex.of(path).probe


def test_a_copied_shard_is_the_same_and_the_log_says_so_once(tmp_path, caplog):
    for name in "abc":
        write(tmp_path / f"{name}.tar", sample(1))
    ShardFolder(tmp_path).open()
    for name in "ab":
        os.utime(tmp_path / f"{name}.tar", ns=(1, 1))
    for times in (1, 0):
        caplog.clear()
        assert ShardFolder(tmp_path).open().caption(0) == " ".join(["00000001"] * 5)
        assert caplog.text.count("2 shards have another time stamp") == times


def test_a_copied_shard_of_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "a.tar", sample(1))
    build_index(path)
    os.utime(path, ns=(1, 1))

    def denied(place, data):
        raise OSError(errno.EROFS, "Read-only file system", str(place))

    monkeypatch.setattr("triptych.data_modules.shards.index._write", denied)
    assert len(ShardFolder(tmp_path).open()) == 1 and "another time stamp" in caplog.text


def test_run_continues_while_another_sees_a_copied_shard(tmp_path):
    path = write(tmp_path / "a.tar", [m for n in range(3) for m in sample(n)])
    folder = ShardFolder(tmp_path).open()
    os.utime(path, ns=(1, 1))
    ShardFolder(tmp_path).open()
    assert folder.caption(2) == " ".join(["00000002"] * 5)


def test_large_shards_are_known_by_some_of_their_blocks(tmp_path):
    content = np.random.default_rng(0).bytes(3 << 20)
    (tmp_path / "a").write_bytes(content)
    before = identity.compute_probe(tmp_path / "a")
    for place in (0, len(content) - 1, (len(content) - identity.BLOCK) // 3 + 5):
        (tmp_path / "b").write_bytes(content[:place] + b"!" + content[place + 1 :])
        assert identity.compute_probe(tmp_path / "b") != before
    (tmp_path / "c").write_bytes(content)
    assert identity.compute_probe(tmp_path / "c") == before


def test_a_wrong_byte_anywhere_in_an_index_is_noticed(tmp_path):
    path = write(tmp_path / "a.tar", sample(1) + [("lonely.jpg", b"")])
    content = build_index(path).path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        next(index_paths(path)).write_bytes(damaged)
        with pytest.raises(UserError, match="damaged|no index of triptych|has version"):
            ShardIndex.of(path).key(0)
    for length in range(0, len(content), 13):
        next(index_paths(path)).write_bytes(content[:length])
        with pytest.raises(UserError, match="is damaged|no index of triptych"):
            ShardIndex.of(path).key(0)
    next(index_paths(path)).write_bytes(content[:90])
    assert isinstance(next(index_shards([path])), ShardIndex)


def test_foreign_file_is_not_read_or_overwritten_as_an_index(tmp_path):
    path = write(tmp_path / "a.tar", sample(1))
    other = tmp_path / "a.tar.idx"
    other.write_text("somebody's notes, which are long enough to hold a header of an index" * 9)
    with pytest.raises(UserError, match="a.tar.idx is no index of triptych; move it away"):
        ShardFolder(tmp_path).open()
    assert isinstance(next(index_shards([path])), UserError)
    assert other.read_text().startswith("somebody's notes")


def test_shards_without_index_may_be_refused(tmp_path):
    one, two = shards_of(tmp_path, 2)
    build_index(one)
    with pytest.raises(UserError, match=rf"1 of 2 shards have no index, first {two}; run"):
        ShardFolder(tmp_path, index="require").open()
    build_index(two)
    assert len(ShardFolder(tmp_path, index="require").open()) == 4


# --- how it is written ----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_has_its_indexes_in_the_cache(tmp_path, monkeypatch):
    path = write(tmp_path / "read only" / "a.tar", sample(1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    really_open = open

    def refuse(name, mode="r", *rest):
        if "w" in mode and Path(name).parent == path.parent:
            raise OSError(errno.EROFS, "Read-only file system", str(name))
        return really_open(name, mode, *rest)

    monkeypatch.setattr("builtins.open", refuse)
    assert len(ShardFolder(path).open()) == 1
    assert os.listdir(path.parent) == ["a.tar"]
    monkeypatch.setattr(indexing, "scan_shard", None)  # it is there now
    assert ShardFolder(path).open().key(0) == "00000001"
    assert len(list((tmp_path / "cache" / "triptych" / "index").iterdir())) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_index_is_written_whole_or_not_at_all(step, tmp_path, monkeypatch):
    path = write(tmp_path / "a.tar", sample(1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "here")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match="index of .*a.tar cannot be written: No space left"):
        build_index(path)
    assert os.listdir(tmp_path) == ["a.tar"]


def test_many_shards_are_indexed_in_order_and_not_twice(tmp_path, monkeypatch):
    paths = shards_of(tmp_path, 9)
    paths[4].write_bytes(b"no tar")
    found = list(index_shards(paths, workers=2))
    assert [isinstance(index, UserError) for index in found] == [n == 4 for n in range(9)]
    assert [i.shard for i in found if not isinstance(i, UserError)] == paths[:4] + paths[5:]
    write(paths[4], sample(99))
    read, scan_shard = [], indexing.scan_shard
    monkeypatch.setattr(indexing, "scan_shard", lambda path: read.append(path) or scan_shard(path))
    assert [index.shard for index in index_shards(paths, workers=1)] == paths
    assert read == [paths[4]]
