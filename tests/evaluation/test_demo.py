"""The demo: one page that needs nothing else, and the scores in a file."""

import json
import re
import time

import pytest
from oracle_models import Noise, Perfect, Shuffled

from triptych.evaluation.shapes.demo import make_demo
from triptych.evaluation.shapes.story_eval import kinds
from triptych.shapes_world.captions import TASKS

IMAGES = 24
STORY_IMAGES = sum(kind != "question" for number in range(4) for kind in kinds(number))


def test_a_perfect_model_has_a_green_page(tmp_path):
    started = time.time() - 100
    folder = tmp_path / "new/demo"
    scores = make_demo(Perfect(IMAGES), folder, num_images=IMAGES, started=started)
    saved = json.loads((folder / "scores.json").read_text())
    assert list(saved["shape_eval"]) == [*TASKS, "mean"]
    assert saved["shape_eval"]["mean"] == saved["reconstruction"] == 1.0
    assert saved["question_answering"] == 1.0
    assert 100 <= saved["seconds"] == scores["seconds"] < 120
    assert saved["edits"] == saved["stories"] == 1.0
    names = {"shape_eval", "reconstruction", "question_answering", "edits", "stories"}
    assert set(saved["intervals"]) == set(saved["numbers"]) == names
    assert saved["intervals"]["shape_eval"] == pytest.approx([0.862, 1.0], abs=1e-3)
    assert saved["chance"]["question_answering"] < 0.6
    page = (folder / "index.html").read_text()
    assert (
        page.count("class='right'") == 12 * 4 + 12 + 12 + STORY_IMAGES
        and "class='wrong'" not in page
    )
    assert "expected:" not in page
    assert sorted(p.name for p in folder.iterdir()) == [
        "index.html",
        "scores.json",
    ]


def test_the_page_needs_nothing_else(tmp_path):
    make_demo(Noise(IMAGES), tmp_path, num_images=IMAGES)
    page = (tmp_path / "index.html").read_text()
    written = re.sub(r"base64,[\w+/=]*", "", page)  # images may hold "//" by chance
    assert not re.search(r"https?:|//\w|<script|<link|url\(|@import", written)
    sources = re.findall(r"src='([^']*)'", page)
    assert len(sources) == 48 + 12 + 24 + 24 + STORY_IMAGES
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "image-rendering: pixelated" in page and "prefers-color-scheme: dark" in page


def test_wrong_images_and_answers_are_marked(tmp_path):
    scores = make_demo(Shuffled(IMAGES), tmp_path, num_images=IMAGES)
    page = (tmp_path / "index.html").read_text()
    assert scores["reconstruction"] < 0.1
    assert page.count("class='wrong'") > 40
    assert "expected: " in page


def test_model_output_is_escaped_on_the_page(tmp_path):
    class Hostile(Perfect):
        def answer(self, images, questions, max_new_tokens):
            return ["<script>alert('x')</script>"] * len(questions)

    make_demo(Hostile(IMAGES), tmp_path, num_images=IMAGES)
    assert "<script" not in (tmp_path / "index.html").read_text()
