"""A report: equal bytes for equal runs, inputs hashed, a page that needs nothing else."""

import hashlib
import json

import numpy
import pytest
from PIL import Image

from triptych.evaluation.report import Report, sha256
from triptych.evaluation.statistics import bootstrap
from triptych.utils.errors import UserError


def example(folder, prompts):
    return Report(
        "drawing",
        scores={"overall": 0.75, "distance": 12.5},
        judged_by="a ruler",
        intervals={"overall": (0.5, 0.9)},
        numbers={"overall": 4},
        counts={"expected": 5, "scored": 4, "missing": 1, "unreadable": 0},
        settings={"folder": str(folder), "prompts": prompts, "seed": 3},
        items=[
            {"key": "a", "prompt": "<b> & c", "state": "scored", "score": 1.0, "image": "a.png"},
            {"key": "b", "prompt": "gone", "state": "missing", "note": "there is no b.png"},
            {"key": "c", "prompt": "torn", "state": "unreadable", "image": "c.png"},
        ],
    )


@pytest.fixture
def report(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG torn")
    return example(tmp_path, prompts)


def test_json_has_versions_and_hashes_and_comes_back(report, tmp_path):
    report.save(tmp_path / "new" / "report.json")
    text = (tmp_path / "new" / "report.json").read_text()
    assert text == report.to_json()
    read = json.loads(text)
    assert read["sha256"] == {"prompts": hashlib.sha256(b"a red circle\n").hexdigest()}
    assert set(read["versions"]) == {"triptych", "torch", "transformers", "diffusers"}
    again = Report.load(tmp_path / "new" / "report.json")
    assert again.scores == report.scores and again.intervals == report.intervals
    assert again.items == report.items
    assert not [name for name in read if "date" in name or "time" in name]


def test_nonfinite_scores_are_not_written(report):
    report.scores["overall"] = float("nan")
    with pytest.raises(ValueError):
        report.to_json()


def test_a_folder_is_hashed_by_the_names_and_bytes_of_its_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "w.bin").write_bytes(b"12")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    (tmp_path / "two" / "inside" / "w.bin").rename(tmp_path / "two" / "w.bin")
    assert sha256(tmp_path / "one") != sha256(tmp_path / "two")
    with pytest.raises(UserError, match="absent.*cannot be read"):
        sha256(tmp_path / "absent")


def test_table_shows_counts_and_missing_scores(report):
    lines = report.table().splitlines()
    assert lines[0] == "drawing, judged by a ruler"
    assert lines[2].split() == ["overall", "0.7500", "0.5000", "to", "0.9000", "4"]
    assert lines[3].split() == ["distance", "12.5000"]
    assert lines[-1] == "expected 5, scored 4, missing 1"


def test_page_is_self_contained_and_escaped(report, tmp_path):
    report.page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt; &amp; c" in page and "<b> & c" not in page
    assert page.count("data:image/jpeg;base64,") == 1  # of three: one is missing, one is torn
    assert "no image that can be read" in page
    assert "http" not in page and "<script" not in page
    assert page.count("<meter") == 1  # the distance has no bar


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "x"}'])
def test_invalid_report_is_named(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="r.json is no (report|JSON)"):
        Report.load(tmp_path / "r.json")
    with pytest.raises(UserError, match="does not exist"):
        Report.load(tmp_path / "absent.json")


def test_the_bootstrap_agrees_with_the_normal_interval_and_draws_clusters_whole():
    values = numpy.random.default_rng(1).normal(size=400)
    half = 1.96 * values.std() / 20
    alone = bootstrap([[[v] for v in values]], [1.0])
    assert numpy.allclose(alone, [values.mean() - half, values.mean() + half], atol=0.01)
    # four equal values a cluster are no more certain than one
    assert bootstrap([[[v] * 4 for v in values]], [1.0]) == pytest.approx(alone)
    assert bootstrap([[[1.0]], [[0.0]]], [0.25, 0.75]) is None  # every draw is 0.25
    assert bootstrap([[[1.0], [1.0, 1.0]]], [1.0]) is None
    assert Report("b", {"a": 1.0}, "me", {"a": None}).intervals == {}


def test_settings_show_no_path_however_deep(report, tmp_path):
    report.settings |= {"deep": {"list": [tmp_path / "x.txt", str(tmp_path)], "number": 3}}
    assert str(tmp_path) not in report.to_json()
    assert json.loads(report.to_json())["settings"]["deep"]["number"] == 3
