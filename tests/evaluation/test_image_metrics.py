"""CLIP score against torchmetrics, diversity against its formula; skipped images are counted."""

import json

import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal import clip_score as reference
from torchvision.transforms.functional import pil_to_tensor

from triptych.evaluation.image_metrics import clip_score, diversity
from triptych.evaluation.image_metrics.feature_space import FeatureSpace
from triptych.utils.errors import UserError

CAPTIONS = ["a red square", "blue", "something green", "a long and winding caption " * 3]


@pytest.fixture(scope="module")
def judge(clip_folder):
    return clip_score.ClipJudge(clip_folder)


class Tensors:
    """The model as torchmetrics expects it: before transformers 5 it gave plain tensors."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def to(self, device):
        return self

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.model.get_text_features(ids, mask).pooler_output


def image(number):
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 255, (20, 20 + number, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def write(folder, captions):
    lines = []
    for number, caption in enumerate(captions):
        image(number).save(folder / f"{number}.png")
        lines.append(json.dumps({"file": f"{number}.png", "prompt": caption}))
    (folder / "results.jsonl").write_text("\n".join(lines))
    return folder


# --- CLIP score -----------------------------------------------------------------------------------


def test_scores_are_those_of_torchmetrics(judge):
    captions = CAPTIONS[:3]  # its own cut of long ones drops the end token, ours keeps it
    marks = judge([image(n) for n in range(3)], captions)
    expected = [
        reference(pil_to_tensor(image(n)), caption, lambda: (Tensors(judge.model), judge.processor))
        for n, caption in enumerate(captions)
    ]
    assert len(set(marks.tolist())) > 1
    torch.testing.assert_close(marks, torch.stack(expected).detach())


def test_a_report_of_clip_scores(judge, tmp_path):
    folder = write(tmp_path, CAPTIONS)
    (folder / "1.png").write_bytes(b"no image")
    (folder / "2.png").unlink()
    image(9).save(folder / "9.png")
    reports = [clip_score.score(folder, judge, batch_size) for batch_size in (1, 3)]
    assert reports[0].scores["CLIP score"] == pytest.approx(reports[1].scores["CLIP score"])
    report = reports[1]
    assert report.counts == {
        **{"expected": 5, "scored": 2, "missing": 1, "unreadable": 1, "without_caption": 1},
        "cut_captions": 1,
    }
    assert [item["state"] for item in report.items] == [
        *("scored", "unreadable", "missing", "scored", "without_caption")
    ]
    assert report.scores["CLIP score"] == pytest.approx(
        sum(item["score"] for item in report.items if "score" in item) / 2
    )
    low, high = report.intervals["CLIP score"]
    assert low <= report.scores["CLIP score"] <= high
    report.page(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<img") >= 2
    assert set(json.loads(report.to_json())["sha256"]) == {"clip"}


def test_images_without_captions_are_refused(judge):
    with pytest.raises(UserError, match="none of the 2 images in images in memory"):
        clip_score.score([image(0), image(1)], judge)


def test_other_folders_are_no_clip(tmp_path):
    with pytest.raises(UserError, match="is no folder with a CLIP model"):
        clip_score.ClipJudge(tmp_path)


# --- diversity ------------------------------------------------------------------------------------


class Corner(FeatureSpace):
    """The first pixel."""

    label, settings = "corners", {}

    def __call__(self, images):
        return torch.tensor([p.getpixel((0, 0)) for p in images]).float()


def coloured(folder, colours):
    """Images by prompt -> colours, in a folder with its results.jsonl."""
    lines = []
    for prompt, number, colour in (
        (p, n, c) for p, of in colours.items() for n, c in enumerate(of)
    ):
        name = f"{prompt}-{number}.png"
        Image.new("RGB", (4, 4), colour).save(folder / name)
        lines.append(json.dumps({"file": name, "prompt": prompt}))
    (folder / "results.jsonl").write_text("\n".join(lines))
    return folder


def test_distance_is_over_pairs_of_different_images():
    assert diversity.mean_distance(torch.eye(4)) == pytest.approx(1)
    assert diversity.mean_distance(torch.ones(4, 3)) == pytest.approx(0)
    three = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    assert diversity.mean_distance(three) == pytest.approx(2 / 3)


def test_diversity_of_prompts(tmp_path):
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    folder = coloured(
        tmp_path,
        {"same": [red] * 3, "other": [red, green, blue], "single": [red], "two": [red] * 2},
    )
    (folder / "two-1.png").write_bytes(b"no image")
    report = diversity.score(folder, Corner(), batch_size=2)
    assert report.scores == {"diversity": pytest.approx(0.5)}
    assert report.numbers == {"diversity": 2}
    assert report.counts == {
        **{"expected": 9, "scored": 6, "missing": 0, "unreadable": 1, "without_prompt": 0},
        **{"alone": 2, "prompts": 2},
    }
    by_key = {item["key"]: item for item in report.items}
    assert by_key["other-0.png"]["score"] == pytest.approx(1)
    assert by_key["two-0.png"]["state"] == "alone" and "score" not in by_key["two-0.png"]
    low, high = report.intervals["diversity"]
    assert low == pytest.approx(0) and high == pytest.approx(1)  # two prompts tell little


def test_one_image_a_prompt_is_refused(tmp_path):
    folder = coloured(tmp_path, {"a": [(1, 2, 3)], "b": [(4, 5, 6)]})
    with pytest.raises(UserError, match="no prompt has two images"):
        diversity.score(folder, Corner())
