"""The budget lines of the recipes equal the computed costs."""

import re

import pytest
from builders import ROOT

from triptych.cli.cost import Budget, budget

RECIPES = sorted((ROOT / "conf" / "recipes" / "published").glob("*.yaml"))


def test_every_stage_has_a_recipe():
    stages = {path.stem for path in (ROOT / "conf" / "stages").glob("*.yaml")}
    assert {path.stem for path in RECIPES} == stages


PRICED = [path for path in RECIPES if path.stem != "edits"]  # no budget knows images in prompts


@pytest.mark.parametrize("path", PRICED, ids=lambda path: path.stem)
def test_recipe_comments_match_the_cost_at_both_sizes(path):
    lines = re.findall(r"# budget (\S+): (\d+) GPUs.*", path.read_text())
    assert [preset for preset, _ in lines] == ["blip3o_4b", "blip3o_8b"]
    written = [line for line in path.read_text().splitlines() if line.startswith("# budget ")]
    if path.stem in ("decoder", "encoder"):  # no language model in them: both sizes cost the same
        assert written.pop() == written[0].replace("blip3o_4b", "blip3o_8b")
        lines.pop()
    for (preset, gpus), line in zip(lines, written, strict=True):
        assert budget(preset, path.stem, int(gpus)).line(preset) == line


def test_days_are_work_over_speed():
    """989 TFLOP/s at 40%: a day is 3.418e19 FLOPs on each GPU."""
    run = Budget(gpus=2, batch_size=10, steps=1000, flops=3.418e15)
    assert run.days(run.flops) == pytest.approx(1.0, rel=1e-3)
    written = "# budget mine: 2 GPUs x 10 x 1000 steps, at 40% of 989 TFLOP/s: 1.00 days (3418.00"
    assert run.line("mine").startswith(written)
