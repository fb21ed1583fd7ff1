"""The control of guidance by the image: only on the Edit tab, of a generator that sees it."""

import gradio
import pytest
from edit_models import blind_flags
from PIL import Image

from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.webui.app import build
from triptych.serving.webui.models import Models
from triptych.serving.webui.session import Page
from triptych.serving.webui.votes import Votes

FEW = {"Features: steps": 2, "Pixels: steps": 1}


def page_of(pipe, folder):
    page = Page(Models({"tiny": lambda: pipe}), Votes(folder / "votes.jsonl"), [], folder)
    return page, build(page)


@pytest.fixture(scope="module")
def seeing():
    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


def controls(blocks):
    labels = [getattr(block, "label", "") for block in blocks.blocks.values()]
    return [label for label in labels if label and "image guidance" in label]


def test_a_generator_that_sees_no_image_has_no_such_control(tmp_path):
    flags = blind_flags(tmp_path)
    blind = UnifiedPipeline.from_pretrained("tiny", device="cpu", overrides=flags)
    _, blocks = page_of(blind, tmp_path)
    assert controls(blocks) == []


def test_the_edit_tab_passes_its_image_guidance_on(seeing, tmp_path, monkeypatch):
    page, blocks = page_of(seeing, tmp_path)
    assert controls(blocks) == ["Features: image guidance"]
    (run,) = [
        function
        for function in blocks.fns.values()
        if any("image guidance" in str(getattr(each, "label", "")) for each in function.inputs)
    ]
    values = {each.label: each.value for each in run.inputs} | FEW
    assert values["Features: image guidance"] == 1.5  # the model's
    Image.new("RGB", (60, 48), "red").save(tmp_path / "red.png")
    values |= {"Image": str(tmp_path / "red.png"), "Instruction": "make it blue", "Images": 1}
    values |= {"Features: image guidance": 2.5, "Features: guidance": 3.5}
    seen, sample = [], seeing.model.generation.sample

    def record(*given, **named):
        seen.append((named["guidance_scale"], named["image_guidance_scale"], named["source"]))
        return sample(*given, **named)

    monkeypatch.setattr(seeing.model.generation, "sample", record)
    try:
        updates = list(run.fn(*values.values()))
    finally:
        page.uploads.close()
    ((scale, image_scale, source),) = seen
    assert (scale, image_scale) == (3.5, 2.5) and source.present.tolist() == [True]
    assert any(isinstance(each, gradio.Gallery) for each in updates[-1])
