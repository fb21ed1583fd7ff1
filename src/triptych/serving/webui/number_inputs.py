"""Numeric inputs that validate values without rounding, which Gradio's own do."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gradio as gr

from triptych.serving.webui.session import errors_for_viewers
from triptych.utils.errors import UserError


def slider(
    minimum: float, maximum: float, *, value: float, step: float, label: str, **options: Any
):
    """Create a strict `gr.Slider`; with a step of 1 it accepts integers only."""
    component = gr.Slider(minimum, maximum, value, step=step, label=label, **options)
    return _strict(component, step == 1, optional=False)


def number(value: float, maximum: float, label: str, whole: bool, **options: Any):
    """Create a strict `gr.Number` from 0; an empty one is None."""
    precision = 0 if whole else None
    component = gr.Number(
        value, label=label, minimum=0, maximum=maximum, precision=precision, **options
    )
    return _strict(component, whole, optional=True)


def _strict(component: Any, whole: bool, optional: bool) -> Any:
    component.preprocess = partial(_validated, component, whole=whole, optional=optional)
    return component


def _validated(component: Any, value: Any, *, whole: bool, optional: bool) -> float | None:
    """Return the value of a component unchanged.

    Raises:
        gr.Error: the value is not a number of the right type and range.
    """
    minimum, maximum = component.minimum, component.maximum
    if value is None and optional:
        return None
    kinds = int if whole else int | float
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not math.isfinite(value)
        or not minimum <= value <= maximum
    ):
        kind = "a whole number" if whole else "a number"
        with errors_for_viewers():
            raise UserError(
                f"{component.label} is not {kind} from {minimum} to {maximum}; change it."
            )
    return value
