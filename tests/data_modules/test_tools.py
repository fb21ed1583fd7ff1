"""`triptych data`: packing is deterministic and resumes, inspection counts samples."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.data_modules import ShardFolder
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.tools.inspect import (
    collect_statistics,
    evenly_spaced,
    make_image_grid,
    repeated,
)
from triptych.data_modules.tools.pack import MANIFEST, pack, safe_key, skipped
from triptych.utils.errors import UserError


def encoded(number, kind="PNG", size=(20, 30)):
    """An image whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 10, 200)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path):
    """A CSV of seven images in three formats."""
    folder = tmp_path / "table"
    folder.mkdir()
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text", "more"])
        for number in range(7):
            name = f"{number}.{list(kinds)[number % 3]}"
            (folder / name).write_bytes(encoded(number, kinds[name.split(".")[1]]))
            rows.writerow([name, f"caption {number}, of\nseveral lines", "x"])
    return folder / "captions.csv"


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def packed(table, out, workers=1, size=3):
    return pack(
        detect_source(table).open(), out, {"source": "t"}, samples_per_shard=size, workers=workers
    )


# --- pack -----------------------------------------------------------------------------------------


def test_images_are_packed_as_they_are(table, tmp_path):
    shards = packed(table, tmp_path / "out")
    assert [(shard.shard, shard.samples) for shard in shards] == [
        ("shard-00000.tar", 3),
        ("shard-00001.tar", 3),
        ("shard-00002.tar", 1),
    ]
    folder = ShardFolder(tmp_path / "out").open()
    for number in range(7):
        kind = ["jpg", "png", "webp"][number % 3]
        assert folder.image_bytes(number) == (table.parent / f"{number}.{kind}").read_bytes()
        assert folder.caption(number) == f"caption {number}, of\nseveral lines"
        assert folder.key(number) == f"{number:09d}"


def test_the_same_bytes_by_any_number_of_processes(table, tmp_path):
    packed(table, tmp_path / "one")
    packed(table, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_packing_resumes_after_an_interruption(table, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    packed(table, whole)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(
            detect_source(table).open(),
            out,
            {"source": "t"},
            samples_per_shard=3,
            workers=1,
            progress=stop,
        )
    (out / ".shard-00002.tar.partial").write_bytes(b"half a shard")
    with (out / MANIFEST).open("a") as manifest:
        manifest.write('{"shard": "shard-000')  # what a crash may leave
    before = {name: (out / name).stat().st_mtime_ns for name in os.listdir(out)}
    again = packed(table, out)
    assert [shard.samples for shard in again] == [3, 3, 1]
    tars = {name: content for name, content in files(whole).items() if name != MANIFEST}
    assert {name: files(out)[name] for name in tars} == tars
    assert not [name for name in os.listdir(out) if name.endswith(".partial")]
    for name in ("shard-00000.tar", "shard-00001.tar"):
        assert (out / name).stat().st_mtime_ns == before[name]
    assert packed(table, out) == again


@pytest.mark.parametrize("prepare", ["other", "settings", "damaged"])
def test_other_contents_are_never_mixed_in(table, tmp_path, prepare):
    out = tmp_path / "out"
    if prepare == "other":
        out.mkdir()
        (out / "thesis.tex").write_text("important")
    else:
        packed(table, out)
    if prepare == "damaged":
        (out / MANIFEST).write_text("{")
    before = files(out)
    says = {"other": "thesis.tex", "settings": "--samples-per-shard was 3", "damaged": "is damaged"}
    with pytest.raises(UserError, match=says[prepare]):
        packed(table, out, size=4 if prepare == "settings" else 3)
    assert files(out) == before


def test_samples_that_cannot_be_packed_are_counted(table, tmp_path):
    (table.parent / "1.png").unlink()
    (table.parent / "2.webp").write_bytes(b"no image")
    (tmp_path / "secret.png").write_bytes(encoded(99))
    with table.open("a") as file:
        file.write("../secret.png,out of the folder,x\n")
    shards = packed(table, tmp_path / "out")
    assert skipped(shards) == {
        "image is missing": 1,
        "image is no JPEG, PNG, WEBP, GIF or BMP": 1,
        "image lies outside of the data set's folder": 1,
    }
    folder = ShardFolder(tmp_path / "out").open()
    assert [folder.key(n)[-1] for n in range(len(folder))] == ["0", "3", "4", "5", "6"]


@pytest.mark.parametrize("key", ["a b", "a/b", "../x", "k.v", "ü", "", "x" * 200, "a\nb", "..."])
def test_keys_are_made_safe_and_stay_apart(key):
    safe = safe_key(key)
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and 0 < len(safe) <= 80
    assert safe not in (key, safe_key(key + "!"))


def test_good_keys_stay():
    assert safe_key("JourneyDB_054-a") == "JourneyDB_054-a"


def test_shards_are_cut_anew(table, tmp_path):
    packed(table, tmp_path / "three")
    packed(tmp_path / "three", tmp_path / "five", size=5)
    folder = ShardFolder(tmp_path / "five").open()
    assert folder.shard_sizes.tolist() == [5, 2]
    assert [folder.caption(n)[:9] for n in range(7)] == [f"caption {n}" for n in range(7)]


def test_json_lines_of_captions(table, tmp_path):
    lines = [{"image": f"{n}.jpg", "caption": f"line {n}"} for n in (0, 3)]
    path = table.parent / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    source = detect_source(path).open()
    assert [source.caption(n) for n in range(len(source))] == ["line 0", "line 3"]
    assert source.image_bytes(1) == (table.parent / "3.jpg").read_bytes()


def test_conversations_and_edits_are_packed(table, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    records = [
        {"image": "0.jpg", "conversations": turns},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"source": "1.png", "instruction": "more red", "target": "2.webp"},
    ]
    path = table.parent / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    assert skipped(packed(path, tmp_path / "out")) == {"no image": 1}
    folder = ShardFolder(tmp_path / "out").open()
    assert folder.metadata(0)["conversation"] == [["What?", "A square."]]
    assert folder.caption(1) == "more red"
    assert folder.image_bytes(1, "source") == (table.parent / "1.png").read_bytes()
    assert folder.image_bytes(1) == (table.parent / "2.webp").read_bytes()


def test_a_folder_of_images(tmp_path):
    for name in ("a b", "sub/c"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(1))
        path.with_suffix(".txt").write_text(f"photo {name}")
    packed(tmp_path / "photos", tmp_path / "out")
    folder = ShardFolder(tmp_path / "out").open()
    found = {folder.key(n).rpartition("-")[0]: folder.caption(n) for n in range(len(folder))}
    assert found == {"a_b": "photo a b", "sub_c": "photo sub/c"}


def test_a_parquet_file_of_a_hugging_face_data_set(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": {"bytes": encoded(n), "path": None}, "text": f"row {n}"} for n in range(5)]
    (tmp_path / "data").mkdir()
    for part, first in enumerate((0, 3)):
        some = pyarrow.Table.from_pylist(rows[first : first + 3])
        parquet.write_table(some, tmp_path / "data" / f"{part}.parquet", row_group_size=2)
    packed(tmp_path / "data", tmp_path / "out", workers=2, size=2)
    folder = ShardFolder(tmp_path / "out").open()
    assert [folder.caption(n) for n in range(5)] == [f"row {n}" for n in range(5)]
    assert [folder.image_bytes(n) for n in range(5)] == [encoded(n) for n in range(5)]


def test_a_data_set_that_hugging_face_saved(tmp_path):
    import datasets

    rows = {"image": [{"bytes": encoded(n)} for n in range(4)], "caption": list("abcd")}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data = datasets.DatasetDict({"train": data.select([3, 1, 0]), "test": data})
    data.save_to_disk(str(tmp_path / "data"))
    source = detect_source(tmp_path / "data").open()
    assert [source.caption(n) for n in range(len(source))] == ["d", "b", "a"]
    assert source.image_bytes(0) == encoded(3)
    assert len(detect_source(tmp_path / "data", split="test").open()) == 4
    with pytest.raises(UserError, match="no split 'val'; choose one of train, test"):
        detect_source(tmp_path / "data", split="val").open()


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_counts_the_samples(table, tmp_path):
    (table.parent / "3.jpg").write_bytes((table.parent / "0.jpg").read_bytes())
    (table.parent / "4.png").write_bytes(encoded(4)[:20])
    found = collect_statistics(detect_source(table).open(), workers=2)
    assert found.samples == 7 and found.words == [5] * 7
    assert found.problems == {"image is damaged": 1}
    assert found.sizes == [(20, 30)] * 6 and found.formats == {"JPEG": 3, "WEBP": 2, "PNG": 1}
    assert repeated(found.keys) == repeated(found.captions) == 0 and repeated(found.images) == 1


def test_many_samples_are_read_in_part():
    assert (
        evenly_spaced(10, 4) == [0, 2, 5, 7]
        and evenly_spaced(3, 4) == [0, 1, 2]
        and evenly_spaced(0, 4) == []
    )


def test_inspect_grid_shows_images_and_names_broken_ones(table):
    (table.parent / "1.png").write_bytes(b"no image")
    sheet = np.array(make_image_grid(detect_source(table).open(), images=7, columns=4))
    assert sheet[60, 60].tolist() != [255, 255, 255]
    assert np.abs(sheet[60, 60].astype(int) - [0, 10, 200]).max() < 6
    red = (sheet == [255, 0, 0]).all(-1)
    assert red[:, 168:340].any() and not red[:, :168].any()
    assert (sheet[172:200, :160] < 100).any()  # the caption


# --- the command line -----------------------------------------------------------------------------


def run(capsys, *arguments, status=0):
    """Run `triptych data`; returns standard output and standard error."""
    code = 0
    try:
        main(["data", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == status, said
    return said.out, said.err


def test_pack_index_inspect(table, tmp_path, capsys):
    out, _ = run(capsys, "pack", table, "--out", tmp_path / "out", "--samples-per-shard", 3)
    assert out == f"7 samples in 3 shards: {tmp_path / 'out'}\n"
    out, _ = run(capsys, "index", tmp_path / "out")
    assert out == "7 samples in 3 of 3 shards\n"
    sheet = tmp_path / "sheet.png"
    out, _ = run(capsys, "inspect", tmp_path / "out", "--out", sheet, "--workers", 1)
    assert "samples          7\n" in out and "shards           3, samples in each: 1 to 3" in out
    assert "0 keys, 0 captions, 0 images" in out and "left out         nothing" in out
    assert Image.open(sheet).width > 1000


def test_index_command_names_bad_shards(table, tmp_path, capsys):
    out = tmp_path / "out"
    packed(table, out)
    whole = (out / "shard-00001.tar").read_bytes()
    (out / "shard-00001.tar").write_bytes(whole[:2000])
    (out / "shard-00002.tar").write_bytes(b"<html>not found</html>" * 99)
    said, _ = run(capsys, "index", out)
    assert "shard-00001.tar" in said and "truncated" in said
    assert "shard-00002.tar" in said and "no tar header" in said
    assert "in 2 of 3 shards" in said
    for name in ("shard-00000.tar", "shard-00001.tar"):
        (out / name).write_bytes(b"<html>not found</html>" * 99)
    _, said = run(capsys, "index", out, status=1)
    assert "holds no usable sample" in said


def test_a_wrong_byte_is_found_by_its_checksum(table, tmp_path, capsys):
    out = tmp_path / "out"
    packed(table, out)
    run(capsys, "index", out, "--checksums")
    said, _ = run(capsys, "index", out, "--verify")
    assert said.endswith("all samples are as they were when their checksums were taken\n")
    shard = out / "shard-00001.tar"
    before, content = shard.stat(), bytearray(shard.read_bytes())
    content[content.index(b"caption 4")] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    said, why = run(capsys, "index", out, "--verify", status=1)
    assert "shard-00001.tar" in said and "000000004" in said and "1 samples in 1 shards" in why


@pytest.mark.parametrize("command", ["pack", "index", "inspect"])
def test_help_has_an_example(command, capsys):
    out, _ = run(capsys, command, "--help")
    assert f"examples:\n  triptych data {command} " in out


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["pack", "nowhere", "--out", "out"], 1, "nowhere does not exist"),
        (["pack", "README.md", "--out", "out"], 1, "not of a known kind"),
        (["pack", "x"], 2, "--out"),
        (["pack", "x", "--out", "out", "--samples-per-shard", "0"], 2, "is not a whole number"),
        (["index", "nowhere"], 1, "does not exist"),
        (["inspect", "nowhere"], 1, "does not exist"),
        (["inspect", "nowhere", "--out", "sheet.gif"], 1, "must be a .png"),
        (["unpack"], 2, "'unpack' is not a command; choose one of pack"),
    ],
)
def test_bad_input_is_one_sentence(arguments, status, says, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    _, said = run(capsys, *arguments, status=status)
    assert says in said.splitlines()[-1]


def test_help_imports_no_torch():
    code = "import sys; from triptych.cli.main import main; main(['data', 'pack', '--help'])"
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = processes.run([sys.executable, "-c", check])
    assert done.stdout.endswith("False\n"), done.stderr


# --- refusals, and what a plan knows --------------------------------------------------------------


@pytest.fixture
def conversation(tmp_path):
    """A LLaVA file whose image is in another folder; beside it, one of the same name."""
    for name, number in (("images", 1), ("others", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded(number))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "file").mkdir()
    record = {"image": "a.png", "conversations": turns}
    path = tmp_path / "file" / "talk.json"
    path.write_text(json.dumps([record] * 3))
    return path


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_refused_pack_leaves_nothing_and_the_right_command_then_works(
    conversation, tmp_path, size
):
    out = tmp_path / "new" / "out"
    command = ["data", "pack", str(conversation), "--out", str(out), "--workers", "1"]
    command += ["--samples-per-shard", str(size)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code in (1, 2) and not out.parent.exists()
    main([*command, "--images-dir", str(tmp_path / "images")])
    assert len(ShardFolder(out).open()) == 3


def test_a_refused_pack_leaves_an_empty_folder_as_it_was(conversation, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        main(["data", "pack", str(conversation), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--workers", "2"], None),
        (["--samples-per-shard", "2"], "--samples-per-shard was 1000, is 2"),
        (["--images-dir", "others"], "--images-dir was "),
        (["--split", "train"], "--split was None, is 'train'"),
        (["--image-column", "more"], "--image-column was None, is 'more'"),
        (["--caption-column", "more"], "--caption-column was None, is 'more'"),
    ],
)
def test_a_plan_knows_every_option(table, tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others").mkdir()
    for path in table.parent.iterdir():
        (tmp_path / "others" / path.name).write_bytes(path.read_bytes())
    base = ["data", "pack", str(table), "--out", "out", "--images-dir", str(table.parent)]
    main(base)
    before = files("out")
    if says is None:
        main([*base, *change])
    else:
        with pytest.raises(SystemExit):
            main([*base, *change])
        assert says in capsys.readouterr().err
    assert files("out") == before


def test_a_plan_knows_its_source(table, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    main(["data", "pack", str(table), *out])
    other = tmp_path / "other"
    other.mkdir()
    for path in table.parent.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit):
        main(["data", "pack", str(other / table.name), *out])
    assert "SOURCE was" in capsys.readouterr().err
    table.write_text(table.read_text().replace("caption 3", "another 3"))
    with pytest.raises(SystemExit):
        main(["data", "pack", str(table), *out])
    assert "the content of SOURCE has changed" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["caption", "image", "added", "index", "packed inside"])
def test_pack_plan_depends_on_the_folder_contents(change, tmp_path, capsys):
    """But neither what indexing lays beside shards, nor the folder that is packed to."""
    folder = tmp_path / "set"
    folder.mkdir()
    for key in "ab":
        (folder / f"{key}.png").write_bytes(encoded(1))
        (folder / f"{key}.txt").write_text("one")
    out = folder / "out" if change == "packed inside" else tmp_path / "out"
    command = ["data", "pack", str(folder), "--out", str(out), "--workers", "1"]
    main(command)
    if change == "caption":
        (folder / "a.txt").write_text("two")
    elif change == "image":
        (folder / "a.png").write_bytes(encoded(2) + b"\0")
    elif change == "added":
        (folder / "c.txt").write_text("one")
    elif change == "index":
        (folder / "b.tar.idx").write_bytes(b"x")
    if change in ("index", "packed inside"):
        return main(command)
    before = files(out)
    with pytest.raises(SystemExit):
        main(command)
    assert "the content of SOURCE has changed" in capsys.readouterr().err
    assert files(out) == before


def test_every_option_of_pack_is_in_the_plan_or_changes_nothing(table, tmp_path):
    """A new option must be added to the plan, or here."""
    from triptych.cli.data.pack import pack_parser

    options = {action.dest for action in pack_parser()._actions}
    main(["data", "pack", str(table), "--out", str(tmp_path / "out")])
    plan = json.loads((tmp_path / "out" / MANIFEST).read_text().splitlines()[0])
    assert options - set(plan) == {"help", "out", "workers"}
