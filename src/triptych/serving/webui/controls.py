"""The controls of a sampling: components in, arguments of the pipeline out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from triptych.inference.pipeline import UnifiedPipeline
from triptych.sampler import SAMPLERS
from triptych.serving.webui.number_inputs import number, slider

SETTINGS = ("steps", "guidance", "sampler", "decoder_steps", "decoder_guidance", "decoder_sampler")
STAGES = {"": "Features", "decoder_": "Pixels"}
"""Prefix of the settings of either diffusion -> what it makes."""
MOST_STEPS, MOST_GUIDANCE = 250, 100
LARGEST_SEED = 2**53 - 1
"""Up to which a browser shows every number exactly."""
OWN = "the model's"


def sliders(pipe: UnifiedPipeline) -> list[gr.components.Component]:
    """One control for each of SETTINGS, at the model's own values."""
    made = []
    parts = (pipe.model.generation, pipe.model.decoding.decoder)
    for part, stage in zip(parts, STAGES.values(), strict=True):
        with gr.Row():
            most = max(100, part.steps)
            steps = slider(1, most, part.steps, 1, f"{stage}: steps", min_width=140)
            most = max(15, part.guidance)
            guidance = slider(1, most, part.guidance, 0.1, f"{stage}: guidance", min_width=140)
        sampler = gr.Dropdown(list(SAMPLERS), value=part.sampler, label=f"{stage}: sampler")
        made += [steps, guidance, sampler]
    return made


def numbers() -> list[gr.components.Component]:
    """One control for each of SETTINGS; 0 or empty is the model's own."""
    made = []
    for stage in STAGES.values():
        with gr.Row():
            own = {"info": f"0: {OWN}", "min_width": 110}
            steps = number(0, MOST_STEPS, f"{stage}: steps", whole=True, **own)
            guidance = number(0, MOST_GUIDANCE, "Guidance", whole=False, **own)
            sampler = gr.Dropdown([(OWN, ""), *SAMPLERS], value="", label="Sampler", min_width=110)
        made += [steps, guidance, sampler]
    return made


def arguments(values: tuple[Any, ...]) -> dict[str, Any]:
    """What `UnifiedPipeline.generate` takes, of the values of `sliders` or `numbers`."""
    return {name: value or None for name, value in zip(SETTINGS, values, strict=True)}


def seed_row() -> tuple[gr.Number, gr.Checkbox]:
    """A seed, dice that roll another, and whether every click rolls."""
    with gr.Row(elem_classes="seed"):
        seed = number(0, LARGEST_SEED, "Seed", whole=True, min_width=100)
        dice = gr.Button("⚄", elem_classes="dice", min_width=48, scale=0)
        fresh = gr.Checkbox(True, label="New seed each time", min_width=120)
    dice.click(None, outputs=seed, js="() => Math.floor(Math.random() * 2 ** 31)")
    return seed, fresh
