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
from triptych.training.synthetic_batches import ANSWER_TOKENS, PROMPT_TOKENS
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


def stage_flops(model: UnifiedModule, edits: bool = False) -> tuple[float, float]:
    """Return the FLOPs per sample of a stage's step, with cached features and with live ones.

    In joint training, per one sample of each loss. May build the model on the meta device.

    Args:
        edits: whether prompts of images to generate show an image each.
    """
    costs = [_loss_flops(model, name, edits) for name in model.loss_weights]
    cached, live = (sum(cost) for cost in zip(*costs, strict=True))
    return cached, live


def _loss_flops(model: UnifiedModule, loss: str, edits: bool) -> tuple[float, float]:
    """Return the FLOPs per sample of one loss, with cached features and with live ones."""
    if loss == "understanding":
        qwen = model.understanding.vlm
        return (
            flops.understanding_step(qwen, qwen.image_tokens() + PROMPT_TOKENS, ANSWER_TOKENS),
        ) * 2
    if loss == "generation":
        return _generation_flops(model, edits)
    live = counted_flops(model, loss)
    if loss == "encoding":
        return live, live
    return live - flops.image_encoder(model.encoder).forward, live


def _generation_flops(model: UnifiedModule, edits: bool) -> tuple[float, float]:
    qwen, dit = model.understanding.vlm, model.generation.dit
    queries = model.generation.num_queries
    encoder = flops.image_encoder(model.encoder).forward
    tokens = PROMPT_TOKENS + (qwen.image_tokens() if edits else 0)
    if any(path.startswith("understanding") for path in model.trainable):
        vlm = flops.language_model(qwen, tokens + queries)
        velocity = flops.velocity_model(dit, queries, source=dit.takes_source)
        cached = vlm.forward + vlm.backward + velocity.forward + velocity.backward
    else:
        cached = flops.generation_step(qwen, dit, None, tokens, queries).total
    if edits:
        cached += flops.vision_tower(qwen).forward
        cached += encoder if dit.takes_source else 0.0
    return cached, cached + encoder


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
