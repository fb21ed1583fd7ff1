"""Listing of files: every kind of folder and place of shards, in every command that takes one."""

import logging
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from listed_files import CLUTTER, PAIR, image
from tar_shards import write

from triptych.cli.input_files import images_at
from triptych.cli.main import main
from triptych.data_modules import BadSample, ImageFolder, ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.tools.pack import pack, safe_key
from triptych.evaluation.expected_images import images_by_stem
from triptych.evaluation.image_sources import read_images
from triptych.utils.errors import UserError
from triptych.utils.image_reader import FORMATS
from triptych.utils.image_squares import square_image
from triptych.utils.images import open_image
from triptych.utils.listing import names
from triptych.utils.listing.folders import list_images, walk
from triptych.utils.listing.shards import find_shards


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
