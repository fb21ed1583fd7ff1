"""FLOPs and GPU-days of a recipe.

FLOPs of generation and understanding follow the formulas of
`triptych.training.flops`, which tests compare with torch's counter; those of decoder and encoder
are counted on the meta device. Days are FLOPs / (MFU * peak): arithmetic, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.interfaces import IMAGE_GENERATION, Batch
from triptych.modules import UnifiedModule
from triptych.training import flops
from triptych.training.flop_counter import count_flops
from triptych.training.freezing import freeze_all_but
from triptych.training.prompt_counts import (
    PROMPT_TOKENS,
    PromptCounts,
    generation_counts,
    understanding_counts,
)
from triptych.utils.documents import read_yaml
from triptych.utils.paths import conf_files, presets

PEAK = 989e12
"""Peak of dense bfloat16 in FLOP/s: H100 SXM, H200."""
MFU = 0.4
"""Model FLOPs utilization of comparable runs, see docs/training_speed.md."""
SECONDS_PER_DAY = 24 * 3600


@dataclass(frozen=True)
class Budget:
    """Budget of one run. FLOPs are per sample, or per one of each kind in joint training."""

    gpus: int
    batch_size: int
    steps: int
    flops: float
    live: float | None = None
    """The same with features computed in every step; None if there are none to cache."""

    def days(self, flops_per_sample: float) -> float:
        """Return the GPU-days of the whole run, summed over all GPUs."""
        return flops_per_sample * self.batch_size * self.steps / (PEAK * MFU * SECONDS_PER_DAY)

    def line(self, preset: str) -> str:
        """Return the comment line of a recipe."""

        def cost(flops_per_sample: float) -> str:
            days, tera = self.days(flops_per_sample), flops_per_sample / 1e12
            return f"{days:.2f} days ({tera:.2f} TFLOP a sample)"

        live = f"; features live: {cost(self.live)}" if self.live else ""
        return (
            f"# budget {preset}: {self.gpus} GPUs x {self.batch_size} x {self.steps} steps, at "
            f"{MFU:.0%} of {PEAK / 1e12:.0f} TFLOP/s: {cost(self.flops)}{live}"
        )


def budget(preset: str, stage: str, gpus: int) -> Budget:
    """Return the budget of the recipe of a preset for a stage, see `triptych.cli.recipes`.

    Raises:
        UserError: a configuration is missing or invalid.
    """
    recipe = recipe_of(preset, stage)
    files = [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe]
    model = describe_stage(files, ["--model.build_decoder=false"])
    settings = read_yaml(recipe)
    size, steps = settings["data"]["init_args"]["batch_size"], settings["trainer"]["max_steps"]
    cached, live = stage_flops(model)
    return Budget(gpus, size, steps, cached, live if live != cached else None)


def stage_flops(
    model: UnifiedModule, edits: bool = False, stories: float = 0.0
) -> tuple[float, float]:
    """Return the FLOPs per sample of a stage's step, with cached features and with live ones.

    In joint training, per one sample of each loss. May build the model on the meta device.

    Args:
        edits: whether prompts of images to generate show an image each.
        stories: share of the samples that are stories, see `prompt_counts`.
    """
    costs = [_loss_flops(model, name, edits, stories) for name in model.loss_weights]
    cached, live = (sum(cost) for cost in zip(*costs, strict=True))
    return cached, live


def _loss_flops(
    model: UnifiedModule, loss: str, edits: bool, stories: float
) -> tuple[float, float]:
    """Return the FLOPs per sample of one loss, with cached features and with live ones."""
    if loss == "understanding":
        return (understanding_flops(model, understanding_counts(model, stories)),) * 2
    if loss == "generation":
        return generation_flops(model, generation_counts(model, edits, stories))
    live = counted_flops(model, loss)
    if loss == "encoding":
        return live, live
    return live - flops.image_encoder(model.encoder).forward, live


def understanding_flops(model: UnifiedModule, counts: PromptCounts) -> float:
    """Return the FLOPs per prompt of the loss on text."""
    qwen = model.understanding.vlm
    return flops.understanding_step(qwen, counts.tokens, counts.learned, counts.shown)


def generation_flops(model: UnifiedModule, counts: PromptCounts) -> tuple[float, float]:
    """Return the FLOPs per prompt of the loss on images, with cached features and live ones."""
    qwen, dit = model.understanding.vlm, model.generation.dit
    queries, registers = model.generation.num_queries, model.generation.num_registers
    tower = flops.vision_tower(qwen)
    encoder = flops.image_encoder(model.encoder).forward
    if any(path.startswith("understanding") for path in model.trainable):
        vlm = flops.language_model(qwen, counts.tokens + counts.groups * (registers + queries))
        velocity = flops.velocity_model(dit, queries, source=dit.takes_source)
        cached = vlm.forward + vlm.backward + counts.shown * (tower.forward + tower.backward)
        cached += counts.made * (velocity.forward + velocity.backward)
    else:
        step = flops.generation_step(
            *(qwen, dit, None, counts.tokens, queries),
            registers=registers,
            groups=counts.groups,
            images=counts.made,
        )
        cached = step.total + counts.shown * tower.forward
    cached += counts.sources * encoder
    return cached, cached + counts.made * encoder


def counted_flops(model: UnifiedModule, loss: str) -> float:
    """Count the FLOPs of one step of an image loss with its backward pass, by torch's counter."""
    with torch.device("meta"):
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    side, ids = model.image_size, torch.ones(1, PROMPT_TOKENS, dtype=torch.long)
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    number = torch.zeros(1, dtype=torch.long)
    batch = Batch(IMAGE_GENERATION, ["one"], 1, number, ids, ids, target_pixels=pixels).to("meta")
    return count_flops(lambda: model.train().step(batch)[0].backward())
