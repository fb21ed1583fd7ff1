"""The controls of a sampling: components in, arguments of the pipeline out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from triptych.pipeline import UnifiedPipeline

SETTINGS = ("steps", "guidance", "decoder_steps", "decoder_guidance")


def sliders(pipe: UnifiedPipeline) -> list[gr.components.Component]:
    """One control for each of SETTINGS, at the model's own values."""
    generation, decoder = pipe.model.generation, pipe.model.decoding.decoder
    with gr.Row():
        steps = gr.Slider(
            1, max(100, generation.steps), generation.steps, step=1, label="Steps", info="features"
        )
        guidance = gr.Slider(
            1, max(15, generation.guidance), generation.guidance, step=0.1, label="Guidance"
        )
    with gr.Row():
        decoder_steps = gr.Slider(
            1, max(100, decoder.steps), decoder.steps, step=1, label="Decoder steps", info="pixels"
        )
        decoder_guidance = gr.Slider(
            1, max(15, decoder.guidance), decoder.guidance, step=0.1, label="Decoder guidance"
        )
    return [steps, guidance, decoder_steps, decoder_guidance]


def numbers(**given: float) -> list[gr.components.Component]:
    """One control for each of SETTINGS; what is left empty is the model's own."""
    labels = ("Steps", "Guidance", "Decoder steps", "Decoder guidance")
    return [
        gr.Number(
            given.get(name),
            label=label,
            precision=0 if name.endswith("steps") else None,
            minimum=1,
            placeholder="the model's",
            min_width=110,
        )
        for name, label in zip(SETTINGS, labels, strict=True)
    ]


def arguments(values: tuple[Any, ...]) -> dict[str, Any]:
    """What `UnifiedPipeline.generate` takes, of the values of `sliders` or `numbers`."""
    return dict(zip(SETTINGS, values, strict=True))


def seed_row() -> tuple[gr.Number, gr.Checkbox]:
    """A seed, dice that roll another, and whether every click rolls."""
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
        dice = gr.Button("⚄", elem_classes="dice", min_width=48, scale=0)
        fresh = gr.Checkbox(True, label="New seed each time", min_width=120)
    dice.click(None, outputs=seed, js="() => Math.floor(Math.random() * 2 ** 31)")
    return seed, fresh
