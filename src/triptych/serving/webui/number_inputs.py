"""Numeric controls that pass on what the viewer gave, or refuse it; Gradio's own round it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gradio as gr

from triptych.serving.webui.session import errors_for_viewers
from triptych.utils.errors import UserError


def slider(least: float, most: float, value: float, step: float, label: str, **options: Any):
    """A `gr.Slider` that is strict; with a step of 1 it takes whole numbers only."""
    made = gr.Slider(least, most, value, step=step, label=label, **options)
    return _strict(made, step == 1, optional=False)


def number(value: float, most: float, label: str, whole: bool, **options: Any):
    """A `gr.Number` from 0 that is strict; it may be left empty, which is None."""
    precision = 0 if whole else None
    made = gr.Number(value, label=label, minimum=0, maximum=most, precision=precision, **options)
    return _strict(made, whole, optional=True)


def _strict(component: Any, whole: bool, optional: bool) -> Any:
    component.preprocess = partial(
        _checked, component.label, whole, component.minimum, component.maximum, optional
    )
    return component


def _checked(
    label: str, whole: bool, least: float, most: float, optional: bool, value: Any
) -> float | None:
    """The value of a control, unchanged.

    Raises:
        gr.Error: it is not a number of its kind and range.
    """
    if value is None and optional:
        return None
    kinds = int if whole else int | float
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not math.isfinite(value)
        or not least <= value <= most
    ):
        kind = "a whole number" if whole else "a number"
        with errors_for_viewers():
            raise UserError(f"{label} is not {kind} from {least} to {most}; change it.")
    return value
