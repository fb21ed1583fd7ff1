"""One lister: every kind of folder and shard through every door that takes one."""

import io
import logging
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tar_shards import write

from triptych.cli.input_files import images_at
from triptych.cli.main import main
from triptych.data_modules import BadSample, ImageFolder, ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.shards.build_index import build_index
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.streaming.tar_stream import MemberLimits, read_samples
from triptych.data_modules.tools.pack import pack, safe_key
from triptych.evaluation.expected_images import images_by_stem
from triptych.evaluation.image_sources import read_images
from triptych.utils.errors import UserError
from triptych.utils.image_reader import FORMATS
from triptych.utils.image_squares import square_image
from triptych.utils.images import open_image
from triptych.utils.listing import names, tar, tar_headers
from triptych.utils.listing.folders import list_images, walk
from triptych.utils.listing.shards import find_shards


def image(number=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 10, 200)).save(buffer, kind)
    return buffer.getvalue()


def put(folder, *files):
    """Files of a folder: images by their suffix, all others with their own name as text."""
    for name in files:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_image = path.suffix.lower() in names.IMAGE_SUFFIXES
        path.write_bytes(image(len(name)) if is_image else path.name.encode())
    return Path(folder)


def samples_of(source):
    """(key, caption) of an open source."""
    return [(source.key(n), source.caption(n)) for n in range(len(source))]


# --- folders --------------------------------------------------------------------------------------

CLUTTER = [
    ".hidden.jpg",
    "._a.jpg",
    ".DS_Store",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "sub/.git/a.jpg",
    "__MACOSX/a.jpg",
    "__MACOSX/._a.jpg",
    "sub/@eaDir/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "Thumbs.db",
    "desktop.ini",
]
# Files of a folder -> images to score, (key, caption) of samples to train on.
FOLDERS = {
    "plain": (["a.jpg", "a.txt", "b.png", "b.txt"], ["a.jpg", "b.png"], ["a", "b"]),
    "clutter": (["a.jpg", "a.txt", *CLUTTER, ".ipynb_checkpoints/a.txt"], ["a.jpg"], ["a"]),
    "capitals": (
        ["IMG_0.JPG", "IMG_0.TXT", "IMG_1.Jpeg", "IMG_1.txt", "IMG_2.webp", "IMG_2.Txt"],
        ["IMG_0.JPG", "IMG_1.Jpeg", "IMG_2.webp"],
        ["IMG_0", "IMG_1", "IMG_2"],
    ),
    "dots": (
        [f"photo v1.{n}.jpg" for n in range(12)] + [f"photo v1.{n}.txt" for n in range(12)],
        sorted(f"photo v1.{n}.jpg" for n in range(12)),
        sorted(f"photo v1.{n}" for n in range(12)),
    ),
    "sub-folders": (
        ["b/1.png", "b/1.txt", "a.d/1.png", "a.d/1.txt", "0.png", "0.txt"],
        ["0.png", "a.d/1.png", "b/1.png"],
        ["0", "a.d/1", "b/1"],
    ),
    "uncaptioned": (["a.jpg", "a.txt", "b.jpg"], ["a.jpg", "b.jpg"], ["a"]),
    "two images of one name": (["a.png", "a.jpg", "a.txt"], ["a.jpg", "a.png"], ["a"]),
    "two captions": (["a.jpg", "a.txt", "a.TXT", "b.jpg", "b.txt"], ["a.jpg", "b.jpg"], ["b"]),
    "edit": (["e.source.png", "e.target.png", "e.txt"], ["e.target.png"], ["e"]),
    "edit of a plain image": (["e.source.png", "e.jpg", "e.txt"], ["e.jpg"], ["e"]),
    "named source": (["open.source.png", "open.source.txt"], ["open.source.png"], ["open.source"]),
    "named target": (["my.target.png", "my.target.txt"], ["my.target.png"], ["my.target"]),
    "sheet": (["a.jpg", "a.txt", "grid.png"], ["a.jpg"], ["a"]),
}


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path):
    files, images, keys = FOLDERS[request.param]
    return put(tmp_path / "images", *files), images, keys


def test_every_door_finds_the_same_files_of_a_folder(folder, tmp_path):
    path, images, keys = folder
    assert list(list_images(path)) == images
    assert [entry.key for entry in read_images(path)] == images
    assert all(entry.image is not None for entry in read_images(path))
    assert [each.relative_to(path).as_posix() for each in images_at(str(path))] == images
    flat = [name for name in images if "/" not in name]
    first, others = images_by_stem(path)
    assert sorted([*first.values(), *others]) == flat
    source = detect_source(path).open()
    assert isinstance(source, ImageFolder)
    assert [source.key(n) for n in range(len(source))] == keys
    captions = [caption.lower() for _, caption in samples_of(source)]
    assert captions == [f"{key.rpartition('/')[2]}.txt".lower() for key in keys]
    pack(source, tmp_path / "out", {}, workers=1)
    packed = ShardFolder(tmp_path / "out").open()
    assert [packed.key(n) for n in range(len(packed))] == [safe_key(key) for key in keys]
    assert [packed.image_bytes(n) for n in range(len(packed))] == [
        source.image_bytes(n) for n in range(len(source))
    ]


def test_captions_of_a_folder_are_those_of_the_loader(folder):
    path, _, _ = folder
    scored = {entry.caption for entry in read_images(path)} - {None}
    assert scored == {caption for _, caption in samples_of(detect_source(path).open())}


def test_skipped_files_are_counted_by_reason(tmp_path, caplog):
    put(tmp_path, "a.jpg", "a.png", "a.txt", "b.jpg", "c.txt", "d.jpg", "d.txt", "d.TXT")
    with caplog.at_level(logging.WARNING):
        assert samples_of(ImageFolder(tmp_path).open()) == [("a", "a.txt")]
    for reason in (
        "1 second image of one caption",
        "1 image without a caption",
        "1 caption without an image",
        "1 image with two captions that differ in case",
    ):
        assert reason in caplog.text


def test_json_next_to_an_image_is_read_as_in_a_shard(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "b.txt", "c.jpg")
    (tmp_path / "a.JSON").write_text('{"caption": "of JSON", "more": 1}')
    (tmp_path / "b.json").write_text('{"caption": "not this"}')
    (tmp_path / "c.json").write_text("{}")
    source = ImageFolder(tmp_path).open()
    assert [source.caption(n) for n in (0, 1)] == ["of JSON", "b.txt"]
    assert source.metadata(0)["more"] == 1
    with pytest.raises(BadSample, match="c: no caption"):
        source.caption(2)
    assert [entry.caption for entry in read_images(tmp_path)] == ["of JSON", "b.txt", None]


def test_an_edit_in_a_folder_has_its_source(tmp_path):
    put(tmp_path, "e.txt")
    (tmp_path / "e.source.png").write_bytes(image(1))
    (tmp_path / "e.target.PNG").write_bytes(image(2))
    source = ImageFolder(tmp_path).open()
    assert source.has_image(0, "source")
    assert (source.image_bytes(0, "source"), source.image_bytes(0)) == (image(1), image(2))


def test_links_are_followed_and_circles_end(tmp_path):
    put(tmp_path / "elsewhere", "x.jpg", "x.txt")
    folder = put(tmp_path / "set", "a.jpg", "a.txt")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    (folder / "b.jpg").symlink_to(folder / "a.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert list(list_images(folder)) == ["a.jpg", "b.jpg", "gone.jpg", "linked/x.jpg"]
    states = {entry.key: entry.state for entry in read_images(folder)}
    assert states.pop("gone.jpg") == "unreadable" and set(states.values()) == {""}


def test_links_that_lead_to_themselves_end_nothing(tmp_path, capsys):
    folder = put(tmp_path / "set", "a.jpg", "a.txt", "b.jpg", "b.txt", "c.txt")
    for name, to in {"x": "y", "y": "x", "c.jpg": "c.jpg", "d.tar": "d.tar"}.items():
        (folder / name).symlink_to(to)
    assert list(list_images(folder)) == ["a.jpg", "b.jpg", "c.jpg"]
    (folder / "d.tar").unlink()
    main(["data", "pack", str(folder), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert "1 image is no file that can be read" in capsys.readouterr().out
    assert len(ShardFolder(tmp_path / "out").open()) == 2


def test_images_of_other_formats_are_named_by_every_door(tmp_path, caplog):
    """By their suffix: a folder of scans must not become a smaller set without a word."""
    folder = put(tmp_path / "set", "a.jpg", "a.txt")
    for suffix in names.OTHER_SUFFIXES:
        (folder / f"b{suffix.upper()}").write_bytes(b"x")
    said = [f"1 {suffix}, a format that is not read" for suffix in names.OTHER_SUFFIXES]
    for door in (list_images, lambda path: ImageFolder(path).open()):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            door(folder)
        (record,) = caplog.records
        assert all(each in record.getMessage() for each in said)
    (folder / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no image .*1 \.tif, a format that is not read"):
        ImageFolder(folder).open()


@pytest.mark.parametrize("kind", [*FORMATS])
def test_data_sets_take_every_format_that_other_doors_take(kind, tmp_path):
    folder, suffix = tmp_path / "set", {"JPEG": "jpg"}.get(kind, kind.lower())
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(image(3, kind))
    (folder / "a.txt").write_text("a caption")
    pack(detect_source(folder).open(), tmp_path / "out", {}, workers=1)
    source = ShardFolder(tmp_path / "out").open()
    (pixels,) = Decoder("pillow")(source.image_bytes(0), 8)
    assert source.image_bytes(0) == image(3, kind)
    expected = square_image(open_image(folder / f"a.{suffix}"), 8)
    assert np.array_equal(pixels.permute(1, 2, 0), expected)
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as packed:
        assert f"a.{suffix}" in packed.getnames()


@pytest.mark.parametrize("name", ["METADATA.CSV", "Metadata.Jsonl", "metadata.ndjson"])
def test_a_table_is_found_whatever_the_case_of_its_name(name, tmp_path):
    put(tmp_path, "a.jpg")
    text = '{"file_name": "a.jpg", "text": "one"}\n'
    text = "file_name,text\r\na.jpg,one\r\n" if name.endswith("CSV") else text
    (tmp_path / name).write_text("\ufeff" + text, newline="")
    assert samples_of(ImageFolder(tmp_path).open()) == [("a", "one")]


def test_two_tables_of_one_folder_are_refused(tmp_path):
    put(tmp_path, "a.jpg", "metadata.csv", "METADATA.jsonl")
    with pytest.raises(UserError, match="several tables, METADATA.jsonl and metadata.csv; keep"):
        ImageFolder(tmp_path).open()


def test_image_folder_in_place_of_shards_names_the_pack_command(tmp_path):
    with pytest.raises(UserError, match="holds images and no .* `triptych data pack .*--out"):
        find_shards(put(tmp_path, "a.jpg", "a.txt"))


def test_the_order_is_that_of_the_paths_not_of_the_disk(tmp_path):
    order = [f"{n}.jpg" for n in (10, 9, 2, 1)] + ["B.jpg", "a.jpg", "A/z.jpg", "ä.jpg"]
    random.Random(0).shuffle(order)
    put(tmp_path, *order)
    assert list(list_images(tmp_path)) == sorted(order)


def test_names_that_are_no_utf8_are_read(tmp_path):
    for name in (b"caf\xe9.jpg", b"caf\xe9.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(image())
    source = ImageFolder(tmp_path).open()
    assert len(source) == 1 and source.image_bytes(0) == image()
    assert len(list(read_images(tmp_path))) == 1


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be listed .No such file"):
        list(walk(tmp_path / "nowhere"))


def test_keys_of_dotted_names_are_packed_apart(tmp_path):
    put(tmp_path / "in", "a.1.jpg", "a.1.txt", "a.2.jpg", "a.2.txt", "a_1.jpg", "a_1.txt")
    pack(detect_source(tmp_path / "in").open(), tmp_path / "out", {}, workers=1)
    packed = ShardFolder(tmp_path / "out").open()
    assert [packed.caption(n) for n in range(3)] == ["a.1.txt", "a.2.txt", "a_1.txt"]
    assert len({packed.key(n) for n in range(3)}) == 3


def test_two_rows_of_one_stem_stay_two_samples(tmp_path):
    put(tmp_path, "a.jpg", "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,one\na.png,two\n")
    source = ImageFolder(tmp_path).open()
    assert samples_of(source) == [("a.jpg", "one"), ("a.png", "two")]


# --- where shards are -----------------------------------------------------------------------------

PAIR = [("k.jpg", image(kind="JPEG")), ("k.txt", b"k")]


def shard(path, key="k"):
    return write(Path(path), [(name.replace("k", key), content) for name, content in PAIR])


PLACES = {
    "in the folder": ["0.tar", "1.tar"],
    "in sub-folders": ["a/0.tar", "b/c/0.tar"],
    "in capitals": ["0.TAR", "sub/1.Tar"],
}
CLUTTERED = [".hidden.tar", ".ipynb_checkpoints/0.tar", "__MACOSX/0.tar", "._0.tar"]


@pytest.mark.parametrize("place", PLACES)
def test_every_door_finds_the_same_shards(place, tmp_path):
    folder = tmp_path / "set"
    for number, name in enumerate(PLACES[place]):
        shard(folder / name, f"k{number}")
    put(folder, *CLUTTERED)
    found = [folder / name for name in PLACES[place]]
    assert find_shards(folder) == found
    assert ShardFolder(folder).open().paths == found
    source = detect_source(folder).open()
    assert isinstance(source, ShardFolder) and source.paths == found
    expected = [f"{name}/k{n}" for n, name in enumerate(PLACES[place])]
    assert [entry.key for entry in read_images(folder)] == expected
    main(["data", "index", str(folder)])
    main(["data", "inspect", str(folder), "--workers", "1"])
    main(["data", "pack", str(folder), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert len(ShardFolder(tmp_path / "out").open()) == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["00.tar", "01.tar", "2.tar"]),
        ("0[01].tar", ["00.tar", "01.tar"]),
        ("{00..01}.tar", ["00.tar", "01.tar"]),
        ("{2,00}.tar", ["00.tar", "2.tar"]),
        ("{a,b}/*", ["a/3.TAR", "b/4.tar"]),
        ("**/*.tar", ["00.tar", "01.tar", "2.tar", "b/4.tar"]),
        ("?", ["a/3.TAR", "b/4.tar"]),
        ("{a,b}", ["a/3.TAR", "b/4.tar"]),
    ],
)
def test_patterns(pattern, expected, tmp_path):
    files = ["00.tar", "00.tar.idx", "01.tar", "2.tar", "a/3.TAR", "b/4.tar", "__MACOSX/5.tar"]
    put(tmp_path, *files, ".git/6.tar")
    found = find_shards(tmp_path / pattern)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == expected


@pytest.mark.parametrize(
    ("files", "place", "says"),
    [
        ([], "nowhere", "nowhere does not exist"),
        ([], "", r"holds no \*\.tar shard, nor does a folder inside it"),
        (["0.tar"], "{0..2}.tar", "1.tar does not exist, which .*{0..2}.tar names"),
        (["0.tar"], "{0..2.tar", "braces of .* cannot be written out"),
        (["0.idx"], "*", "matches 0.idx, but no"),
        (["a/0.tar.gz"], "", "are gzipped"),
        (["0.TGZ"], "*", "are gzipped"),
        (["0.tar.zst"], "", r"are compressed \(0.tar.zst\)"),
        (["0.tar.BZ2"], "", "are compressed"),
    ],
)
def test_error_for_missing_shards_describes_the_folder(files, place, says, tmp_path):
    folder = put(tmp_path / "set", *files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=says):
        find_shards(folder / place)


def test_compressed_shards_among_others_are_reported(tmp_path, caplog):
    put(tmp_path, "0.tar", "sub/1.tar.gz")
    with caplog.at_level(logging.WARNING):
        assert find_shards(tmp_path) == [tmp_path / "0.tar"]
    assert "1 compressed shards are left out" in caplog.text
    assert len(find_shards(tmp_path, gzipped=True)) == 2


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        (["0.tar", "sheet.png"], "shards", "its 1 images are not read, sheet.png for one"),
        (["a.jpg", "a.txt", "old/0.tar"], "images", "its 1 shards are not read, old/0.tar for one"),
    ],
)
def test_mixed_folder_reports_the_unread_files(files, kind, says, tmp_path, caplog):
    put(tmp_path, *files)
    if kind == "shards":
        shard(tmp_path / "0.tar")
    for door in (detect_source, lambda path: list(read_images(path))):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = door(tmp_path)
        assert says in caplog.text
    assert len(found) == 1
    assert isinstance(detect_source(tmp_path), {"shards": ShardFolder, "images": ImageFolder}[kind])


def test_validation_shards_below_those_of_training_are_refused(tmp_path):
    from builders import unified

    from triptych.data_modules import ShardDataModule

    shard(tmp_path / "0.tar")
    shard(tmp_path / "val" / "1.tar", "v")
    data = ShardDataModule(str(tmp_path), str(tmp_path / "val"))
    data.connect(unified("stage2").preprocessing())
    with pytest.raises(UserError, match="shards of validation .1, .*1.tar for one. are among"):
        data.setup("fit")


def test_shards_of_equal_names_in_sub_folders_have_features_of_their_own(tmp_path):
    from triptych.data_modules.features.cache import default_folder, shard_names

    for folder in ("a", "b"):
        shard(tmp_path / folder / "0.tar", folder)
    source = ShardFolder(tmp_path).open()
    assert default_folder(source) == tmp_path / "features"
    assert shard_names(source.paths) == ["a__0.tar", "b__0.tar"]
    assert shard_names(ShardFolder(tmp_path / "a").open().paths) == ["0.tar"]
    shard(tmp_path / "a__0.tar")
    with pytest.raises(UserError, match="two shards are named a__0.tar"):
        shard_names(find_shards(tmp_path))


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
