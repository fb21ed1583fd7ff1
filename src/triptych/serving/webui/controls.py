"""Sampling controls, and their conversion to arguments of the pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from triptych.inference.generation_config import (
    DECODER,
    PROMPT_SETTINGS,
    help_of,
    label_of,
    limit_of,
    own_value,
)
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.webui.number_inputs import number, slider
from triptych.utils.errors import UserError
from triptych.utils.limits import PORTION, Interval, OneOf, Range

STAGES = {"": "Features", DECODER: "Pixels"}
"""Output of each of the two samplers, by the prefix of its settings."""
MAX_STEPS, MAX_SCALE = 250, 100
MAX_SEED = 2**53 - 1
"""Largest integer up to which browsers show all integers exactly."""
MODEL_DEFAULT = "the model's"


def sliders(
    pipe: UnifiedPipeline, names: Sequence[str] = PROMPT_SETTINGS
) -> list[gr.components.Component]:
    """Add a control for each of the settings `names`, set to the model's values."""

    def control(name: str, limit: Any, label: str) -> gr.components.Component:
        default = own_value(pipe.model, name)
        match limit:
            case OneOf():
                return gr.Dropdown(list(limit.names), value=default, label=label)
            case Range(whole=True):
                return slider(
                    1, max(100, default), value=default, step=1, label=label, min_width=140
                )
            case Range():
                least, most = (0, 1) if limit == PORTION else (1, max(15, default))
                return slider(least, most, value=default, step=0.1, label=label, min_width=140)
        return _textbox(name, label)

    return _controls(control, names)


def numbers() -> list[gr.components.Component]:
    """Add a control for each of PROMPT_SETTINGS; 0 or empty is the model's value."""

    def control(name: str, limit: Any, label: str) -> gr.components.Component:
        options = {"info": f"0: {MODEL_DEFAULT}", "min_width": 110}
        match limit:
            case OneOf():
                choices = [(MODEL_DEFAULT, ""), *limit.names]
                return gr.Dropdown(choices, value="", label=label, min_width=110)
            case Range(whole=True):
                return number(0, MAX_STEPS, label, whole=True, **options)
            case Range():
                return number(0, min(limit.most, MAX_SCALE), label, whole=False, **options)
        return _textbox(name, label)

    return _controls(control, PROMPT_SETTINGS)


def _controls(
    control: Callable[[str, Any, str], gr.components.Component], names: Sequence[str]
) -> list[gr.components.Component]:
    """Add the control of each of the settings, with one row for each sampler."""
    controls = {}
    for prefix, stage in STAGES.items():
        with gr.Row():
            for name in names:
                if name.startswith(DECODER) == bool(prefix):
                    label = f"{stage}: {label_of(name)}"
                    controls[name] = control(name, limit_of(name), label)
    return [controls[name] for name in names]


def _textbox(name: str, label: str) -> gr.Textbox:
    hint = "such as 0.1,0.8; " if isinstance(limit_of(name), Interval) else ""
    return gr.Textbox(label=label, info=f"{help_of(name)}; {hint}may be empty", min_width=140)


def arguments(values: Sequence[Any], names: Sequence[str] = PROMPT_SETTINGS) -> dict[str, Any]:
    """Convert the values of `sliders` or `numbers` to arguments of the pipeline.

    Raises:
        UserError: a text is invalid.
    """
    return {name: _value(name, value) for name, value in zip(names, values, strict=True)}


def _value(name: str, value: Any) -> Any:
    if not value or not isinstance(limit_of(name), Interval):
        return value or None
    try:
        return limit_of(name)(value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{label_of(name)}: {error}.") from error


def seed_row() -> tuple[gr.Number, gr.Checkbox]:
    """Add a seed, a button that draws another one, and a checkbox for a new one at each call."""
    with gr.Row(elem_classes="seed"):
        seed = number(0, MAX_SEED, "Seed", whole=True, min_width=100)
        dice = gr.Button("⚄", elem_classes="dice", min_width=48, scale=0)
        fresh = gr.Checkbox(True, label="New seed each time", min_width=120)
    dice.click(None, outputs=seed, js="() => Math.floor(Math.random() * 2 ** 31)")
    return seed, fresh
