"""Charts: readable for any names, equal bytes for equal numbers, SVG by the suffix."""

import sys

import pytest
from drawing import draw_curves
from PIL import Image

from triptych.evaluation.charts import draw_bars
from triptych.utils.errors import UserError

GROUPS = ["mean", "a $\\frac score", "fid"]
SERIES = {
    "one": [(0.5, (0.4, 0.6)), (None, None), (12.5, (10.0, 15.0))],
    "t_wo $": [(0.9, None), (0.0, (0.0, 0.1)), (-1.0, (-2.0, 0.0))],
}


@pytest.mark.parametrize("name", ["new/bars.png", "bars.svg", "bars"])
def test_bars_are_drawn_with_equal_bytes(tmp_path, name):
    draw_bars(tmp_path / name, GROUPS, SERIES)
    first = (tmp_path / name).read_bytes()
    draw_bars(tmp_path / name, GROUPS, SERIES)
    assert (tmp_path / name).read_bytes() == first
    if name.endswith(".svg"):
        text = first.decode()
        assert "a $\\frac score" in text and "no score" in text and "12.500" in text
    else:
        image = Image.open(tmp_path / name)
        assert image.format == "PNG" and len(image.getcolors(2**16)) > 3


def test_curves_of_several_panels(tmp_path):
    panels = {"left": {"a": [(1, 0.2), (30, 0.9)], "b": [(2, 0.5)]}, "right": {"a": [(1, 0.4)]}}
    draw_curves(tmp_path / "c.svg", panels, "calls", {"left": (0.8, 0.9)})
    text = (tmp_path / "c.svg").read_text()
    assert text.count("calls") == 2 and "left" in text and "right" in text


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"charts need matplotlib.*triptych\[eval\]"):
        draw_bars(tmp_path / "b.png", GROUPS, SERIES)
    assert not list(tmp_path.iterdir())


def test_a_chart_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match=r"b.png could not be written \(Is a directory\)"):
        draw_bars(tmp_path / "b.png", GROUPS, SERIES)
