"""Members of listed shards: pairs, formats and dotted names."""

import io
import random
import tarfile

import numpy as np
import pytest
from listed_files import CLUTTER, PAIR, image
from PIL import Image
from tar_shards import write

from triptych.cli.main import main
from triptych.data_modules import BadSample, ImageFolder, ShardFolder
from triptych.data_modules.shards.build_index import build_index
from triptych.data_modules.streaming.tar_stream import CONVERSATION, MemberLimits, read_samples
from triptych.evaluation.image_sources import read_images
from triptych.utils.errors import UserError
from triptych.utils.listing import names, tar, tar_headers

# --- what is in shards ----------------------------------------------------------------------------


EDIT = [
    ("e.source.jpg", image(1, "JPEG")),
    ("e.target.jpg", image(2, "JPEG")),
    ("e.png", image(3)),
    ("e.txt", b"make it blue"),
    ("e.json", b'{"caption": "not this"}'),
]


def stream(path):
    return [one for one in read_samples(io.BytesIO(path.read_bytes()), MemberLimits())]


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_members_decides_nothing(seed, tmp_path):
    members = list(EDIT)
    random.Random(seed).shuffle(members)
    path = write(tmp_path / "0.tar", members)
    source = ShardFolder(path).open()
    assert source.image_bytes(0) == image(2, "JPEG") and source.image_bytes(0, "source") == image(
        1, "JPEG"
    )
    assert source.caption(0) == "make it blue"
    (entry,) = read_images(path)
    assert entry.caption == "make it blue"
    assert np.array(entry.image)[0, 0, 0] == np.array(Image.open(io.BytesIO(EDIT[1][1])))[0, 0, 0]
    (streamed,) = stream(path)
    assert streamed.members["target.jpg"] == image(2, "JPEG")


def old(name, content=b"", kind=b"\0", signed=False):
    """A member as tar of Unix v7 wrote it: no magic, no owner's name."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136], block[136:148] = b"%011o\0" % len(content), b"00000000000\0"
    block[148:156], block[156:157] = b" " * 8, kind
    total = sum(block) - (256 * sum(byte > 127 for byte in block) if signed else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("door", ["index", "stream", "eval"])
def test_tars_of_the_oldest_format_are_read(door, signed, tmp_path):
    members = [("größe.jpg".encode(), image(kind="JPEG")), ("größe.txt".encode(), b"k")]
    body = b"".join(old(name, content, signed=signed) for name, content in members)
    path = tmp_path / "0.tar"
    path.write_bytes(old(b"folder/") + body + bytes(1024))
    assert [each.name for each in tarfile.open(path) if each.isfile()] == ["größe.jpg", "größe.txt"]
    keys = {
        "index": lambda: build_index(path).keys(),
        "stream": lambda: [one.key for one in stream(path)],
        "eval": lambda: [entry.key.removeprefix("0.tar/") for entry in read_images(path)],
    }[door]()
    assert keys == ["größe"]


def test_damage_in_a_tar_of_the_oldest_format_costs_its_neighbours(tmp_path):
    samples = [old(b"%d.jpg" % n, b"j" * 600) + old(b"%d.txt" % n, b"t") for n in range(5)]
    content = bytearray(b"".join(samples) + bytes(1024))
    content[2 * len(samples[0])] ^= 1  # the first header of sample 2
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    index = build_index(path)
    assert index.keys() == ["0", "3", "4"] and index.problems[0].reason == tar.DAMAGED


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("key", ["k", "./k", "/abs/k", "../k", "a.b/k", "n" * 60 + "/" + "n" * 60])
def test_names_of_every_format_are_keys_and_no_files(form, key, tmp_path):
    path = tmp_path / "in" / "0.tar"
    write(path, [(f"{key}.jpg", image(kind="JPEG")), (f"{key}.TXT", b"k")], format=form)
    assert build_index(path).keys() == [one.key for one in stream(path)] == [key]
    assert [entry.key for entry in read_images(path)] == [f"0.tar/{key}"]
    assert {each.name for each in tmp_path.rglob("*")} == {"in", "0.tar", "0.tar.idx"}


@pytest.mark.parametrize("name", CLUTTER[:4] + CLUTTER[5:6])
def test_hidden_members_of_a_shard_are_left_out(name, tmp_path):
    stem = name.removesuffix(".jpg")
    path = write(tmp_path / "0.tar", [(name, image()), (f"{stem}.txt", b"x"), *PAIR])
    assert build_index(path).keys() == [one.key for one in stream(path)] == ["k"]
    assert build_index(path).problems == []
    assert [entry.key for entry in read_images(path)] == ["0.tar/k"]


def odd_member(name, kind):
    info = tarfile.TarInfo(name)
    if kind == "pax sparse":
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        info.pax_headers |= {"GNU.sparse.name": name, "GNU.sparse.realsize": "4"}
        info.name = "GNUSparseFile.0/" + name
    else:
        info.type, info.linkname = kind, "other"
    return info


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.LNKTYPE, tar_headers.LINK),
        (tarfile.SYMTYPE, tar_headers.LINK),
        (tarfile.CHRTYPE, tar_headers.NOT_A_FILE),
        (tarfile.FIFOTYPE, tar_headers.NOT_A_FILE),
        (tarfile.GNUTYPE_SPARSE, tar_headers.SPARSE),
        ("pax sparse", tar_headers.SPARSE),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.txt"])
def test_members_that_are_no_plain_files_are_named(kind, reason, name, tmp_path):
    path = tmp_path / "0.tar"
    other = "a.txt" if name == "a.jpg" else "a.jpg"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(odd_member(name, kind))
        for each, content in [(other, image(kind="JPEG")), *PAIR]:
            info = tarfile.TarInfo(each)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    index = build_index(path)
    assert index.keys() == ["k"] and [tuple(p) for p in index.problems] == [(reason, 1, ["a"])]
    bad, good = stream(path)
    assert (bad.key, bad.reason, good.key) == ("a", reason, "k")
    lost, kept = read_images(path)
    assert lost.state == "unreadable" and reason in lost.note and kept.state == ""


def test_the_map_of_an_old_sparse_file_is_passed(tmp_path):
    info = tarfile.TarInfo("s.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482:483] = b"\1"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    more = bytearray(512)
    more[504] = 1
    rest = write(tmp_path / "rest.tar", PAIR).read_bytes()
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(header) + bytes(more) + bytes(512) + b"p" * 512 + rest)
    index = build_index(path)
    assert index.keys() == ["k"] and index.problems[0].reason == tar_headers.SPARSE
    assert [getattr(one, "reason", "") for one in stream(path)] == [tar_headers.SPARSE, ""]


@pytest.mark.parametrize("door", ["index", "stream"])
def test_sizes_in_binary_are_read(door, tmp_path):
    content = image(kind="JPEG")
    header = bytearray(old(b"k.jpg", content)[:512])
    header[124:136] = b"\x80" + len(content).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    path = tmp_path / "0.tar"
    padded = content + bytes(-len(content) % 512)
    path.write_bytes(bytes(header) + padded + old(b"k.txt", b"k") + bytes(1024))
    found = build_index(path).keys() if door == "index" else [one.key for one in stream(path)]
    assert found == ["k"]


def compressors():
    import bz2
    import gzip
    import lzma

    return {"gzipped": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress} | {
        "zstd": lambda data: b"\x28\xb5\x2f\xfd" + data,
        "zip archive": lambda data: b"PK\3\4" + data,
    }


@pytest.mark.parametrize("what", compressors())
def test_compressed_tar_without_suffix_is_named_as_such(what, tmp_path):
    path = write(tmp_path / "0.tar", PAIR)
    path.write_bytes(compressors()[what](path.read_bytes()))
    with pytest.raises(UserError, match=f"0.tar is .*{what}.*unpack it"):
        build_index(path)
    (entry,) = read_images(path)
    assert what in entry.note


@pytest.mark.parametrize(
    ("change", "keys", "reason"),
    [
        (lambda data: bytes(1024), [], None),
        (lambda data: data[:-1024] if not any(data[-1024:]) else data, ["k", "l"], None),
        (lambda data: data + b"<html>" * 100, ["k"], tar.ZEROS),
        (lambda data: data + data, ["k"], tar.ZEROS),
        (lambda data: data + bytes(1 << 20), ["k"], tar.TRUNCATED),
        (lambda data: data.rstrip(b"\0"), ["k"], tar.TRUNCATED),
    ],
)
def test_ends_of_archives(change, keys, reason, tmp_path):
    path = write(tmp_path / "0.tar", [*PAIR, ("l.jpg", image(kind="JPEG")), ("l.txt", b"l")])
    path.write_bytes(change(path.read_bytes()))
    index = build_index(path)
    assert index.keys()[: len(keys)] == keys
    reasons = {problem.reason for problem in index.problems}
    assert reason in reasons if reason else not reasons


# --- dots -----------------------------------------------------------------------------------------


@pytest.fixture
def dotted(tmp_path):
    """A shard of names with dots, and a sample whose name has none."""
    members = [
        (f"photo v1.{n}.{kind}", content)
        for n in range(4)
        for kind, content in [("jpg", image(n, "JPEG")), ("txt", b"%d" % n)]
    ]
    return write(tmp_path / "0.tar", [*members, *PAIR, ("k.mask.png", image())])


def test_a_stream_passes_over_conversations_and_says_so(tmp_path):
    talk = [("c.0.jpg", image(1, "JPEG")), ("c.1.jpg", image(2, "JPEG")), ("c.json", b"{}")]
    conversation, sample = stream(write(tmp_path / "0.tar", [*talk, *PAIR]))
    assert (conversation.key, conversation.reason) == ("c", CONVERSATION)
    assert sample.key == "k" and set(sample.members) == {"jpg", "txt"}


def test_dots_in_names_of_a_shard_are_taught_and_mended(dotted, tmp_path, capsys):
    index = build_index(dotted)
    assert index.keys() == ["k"]
    first = [f"photo v1.{n}" for n in range(4)]
    assert [tuple(problem) for problem in index.problems] == [(tar.DOTTED, 4, first)]
    assert "first dot" in tar.DOTTED and "`triptych data pack`" in tar.DOTTED
    assert [(one.key, one.reason) for one in stream(dotted)[:4]] == [
        (key, tar.DOTTED) for key in first
    ]
    main(["data", "index", str(dotted)])
    assert "first dot" in capsys.readouterr().out
    assert [entry.key for entry in read_images(dotted)] == [f"0.tar/{key}" for key in [*first, "k"]]
    main(["data", "pack", str(dotted), "--out", str(tmp_path / "out"), "--workers", "2"])
    packed = ShardFolder(tmp_path / "out").open()
    assert [packed.caption(n) for n in range(5)] == ["0", "1", "2", "3", "k"]
    assert [packed.image_bytes(n) for n in range(4)] == [image(n, "JPEG") for n in range(4)]


def test_shard_with_only_dotted_names_is_refused_with_a_hint(tmp_path, capsys):
    path = write(tmp_path / "0.tar", [("v1.0.jpg", image()), ("v1.0.txt", b"x")])
    with pytest.raises(UserError, match="first dot; `triptych data pack`"):
        ShardFolder(path).open()
    for command in ("index", "inspect"):
        with pytest.raises(SystemExit):
            main(["data", command, str(path)])
        assert "first dot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "at_dot", "at_kind"),
    [
        (b"k.jpg", (b"k", "jpg"), (b"k", "jpg")),
        (b"a.b/k.SOURCE.Jpg", (b"a.b/k", "source.jpg"), (b"a.b/k", "source.jpg")),
        (b"v1.0.jpg", (b"v1", "0.jpg"), (b"v1.0", "jpg")),
        (b"v1.0.target.png", (b"v1", "0.target.png"), (b"v1.0", "target.png")),
        (b"k.pkl", (b"k", "pkl"), (b"", "")),
        (b"k", (b"", ""), (b"", "")),
        (b".jpg", (b"", ""), (b"", "")),
        (b"a/", (b"", ""), (b"", "")),
    ],
)
def test_names_are_split(name, at_dot, at_kind):
    assert names.split_at_first_dot(name) == at_dot
    assert names.split_at_kind(name) == at_kind


def test_a_table_captions_the_images_of_an_evaluation_too(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    (tmp_path / "2.txt").write_text("three")
    (tmp_path / "METADATA.csv").write_bytes(b"file_name,text\n0.png,zero\n1.png, two \n")
    captions = {entry.key: entry.caption for entry in read_images(tmp_path)}
    assert captions == {"0.png": "zero", "1.png": "two", "2.png": "three"}
    loaded = ImageFolder(tmp_path).open()
    assert [loaded.caption(n) for n in range(len(loaded))] == ["zero", "two"]


@pytest.mark.parametrize("text", [b"", b" \n", "a".encode("utf-16"), b"\xff\xff"])
def test_an_unusable_caption_is_that_of_no_reader(tmp_path, text):
    (tmp_path / "0.png").write_bytes(image())
    (tmp_path / "0.txt").write_bytes(text)
    (entry,) = read_images(tmp_path)
    assert entry.caption is None and "cannot be read" in entry.note
    with pytest.raises(BadSample, match="caption is"):
        ImageFolder(tmp_path).open().caption(0)
