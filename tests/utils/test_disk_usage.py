"""Destination and size are printed before writing, and a wrong name is refused."""

import re
import shutil
from collections import namedtuple

import pytest
from builders import unified

from triptych.cli.data.feature_extraction import FeatureFolder
from triptych.data_modules import EditsDataModule, ShapesDataModule
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.tools.pack import pack
from triptych.modules.feature_extraction import FeatureModule
from triptych.shapes_world.shards import ensure_shapes
from triptych.utils.disk_usage import announce, in_units, refuse_other_files
from triptych.utils.errors import UserError


def draw(folder):
    ShapesDataModule(str(folder), images=8).prepare_data()


def draw_edits(folder):
    EditsDataModule(str(folder), str(folder.parent / "edits"), images=8, changes=8).prepare_data()


def pack_table(folder):
    (folder.parent / "t.csv").write_text("image,text\na.png,x\n")
    pack(detect_source(folder.parent / "t.csv").open(), folder, {"source": "t"}, workers=1)


def features(folder):
    shapes = ensure_shapes(folder.parent / "shapes", train=8, evaluation=2, unseen=2, instruct=2)
    model = unified("inference")
    module = FeatureModule(model, "clip")
    source = ShardFolder(shapes / "train").open()
    FeatureFolder(folder, {"image_backend": "pillow"}, "fp32").extract(source, module)


DOORS = {"shapes": draw, "edits": draw_edits, "pack": pack_table, "features": features}


@pytest.mark.parametrize("door", DOORS)
def test_destination_is_printed_before_writing(door, tmp_path, monkeypatch):
    out, said = tmp_path / "out", []

    def hear(text):
        said.append(text)
        if f"to {out}" in text:
            raise KeyboardInterrupt  # as whoever sees a wrong name would

    monkeypatch.setattr("sys.stderr.write", hear)
    with pytest.raises(KeyboardInterrupt):
        DOORS[door](out)
    assert re.match(r"triptych: writing .* \(about [\d.]+ \w+\) to ", said[-1])
    assert not out.exists()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("there", ["other file", "file", "no room"])
def test_a_wrong_place_is_refused_and_left_as_it_is(door, there, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if there == "other file":
        out.mkdir()
        (out / "thesis.tex").write_text("important")
    elif there == "file":
        out.write_text("a file")
    else:
        if door == "features":
            ensure_shapes(tmp_path / "shapes", train=8, evaluation=2, unseen=2, instruct=2)
        usage = namedtuple("usage", "total used free")(10, 9, 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    if door == "pack" and there == "no room":
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError):
        DOORS[door](out)
    assert not out.is_dir() or [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_size_estimate_is_close(tmp_path, capsys):
    folder = ensure_shapes(tmp_path / "shapes", train=200, evaluation=20, unseen=10, instruct=20)
    guess = float(re.search(r"about ([\d.]+) kB|about ([\d.]+) MB", capsys.readouterr().err)[2])
    size = sum(path.stat().st_size for path in folder.rglob("*.tar")) / 1e6
    assert size / 2 < guess < size * 2
    ensure_shapes(folder, train=200, evaluation=20, unseen=10, instruct=20)
    assert "writing" not in capsys.readouterr().err


def test_units():
    words = {5: "5 bytes", 1234: "1.2 kB", 243_000_000: "243 MB", 5e12: "5.0 TB"}
    assert {size: in_units(size) for size in words} == words


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    for place in (tmp_path / "link" / "x", tmp_path / "link"):
        with pytest.raises(UserError, match="is no folder"):
            announce("it", place, 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "ours").touch()
    assert refuse_other_files(tmp_path / "a", re.compile("ours"), "--out") == ["ours"]
    with pytest.raises(UserError, match="holds something else already, ours for one"):
        refuse_other_files(tmp_path / "a", re.compile("no"), "--out")
