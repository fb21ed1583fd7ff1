"""Cost of a training run: GPU-days of a recipe, from the FLOPs of its steps.

    python -m triptych.cli.cost blip3o_8b stage2 --gpus 32

prints the budget line of the recipe. Generation and understanding by the formulas of
`triptych.training.flops`, which tests compare with torch's counter; decoder and encoder counted on
the meta device. Days are FLOPs over MFU times a peak: arithmetic, not a measurement.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.interfaces import IMAGE_GENERATION, Batch
from triptych.modules import UnifiedModule
from triptych.training import flops
from triptych.training.flop_counter import count_flops
from triptych.training.freezing import freeze_all_but
from triptych.utils.documents import read_yaml
from triptych.utils.limits import COUNT
from triptych.utils.paths import conf_files, presets
from triptych.utils.standard_streams import run

PEAK = 989e12  # FLOP/s in bfloat16, dense: H100 SXM, H200
MFU = 0.4  # what comparable runs reach of it, see docs/training_speed.md
PROMPT = 136  # tokens of a long caption in its template, [IMG] included
ANSWER = 121  # of them the caption: what is learned where captions are answers
SECONDS = 24 * 3600


@dataclass(frozen=True)
class Budget:
    """Budget of one run. FLOPs are per sample, or per one of each kind in joint training."""

    gpus: int
    batch_size: int
    steps: int
    flops: float
    live: float | None = None
    """The same where features are made in every step, not read; None where there are none."""

    def days(self, of_sample: float) -> float:
        """GPU-days of the whole run, summed over all GPUs."""
        return of_sample * self.batch_size * self.steps / (PEAK * MFU * SECONDS)

    def line(self, preset: str) -> str:
        """Comment line of a recipe."""

        def cost(of_sample: float) -> str:
            return f"{self.days(of_sample):.2f} days ({of_sample / 1e12:.2f} TFLOP a sample)"

        live = f"; features live: {cost(self.live)}" if self.live else ""
        return (
            f"# budget {preset}: {self.gpus} GPUs x {self.batch_size} x {self.steps} steps, at "
            f"{MFU:.0%} of {PEAK / 1e12:.0f} TFLOP/s: {cost(self.flops)}{live}"
        )


def budget(preset: str, stage: str, gpus: int) -> Budget:
    """Of the recipe of a preset for a stage on `gpus`, see `triptych.cli.recipes`.

    Raises:
        UserError: a configuration is missing or wrong.
    """
    recipe = recipe_of(preset, stage)
    files = [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe]
    model = describe_stage(files, ["--model.build_decoder=false"])
    settings = read_yaml(recipe)
    size, steps = settings["data"]["init_args"]["batch_size"], settings["trainer"]["max_steps"]
    costs = [_of_loss(model, name) for name in model.loss_weights]
    cached, live = (sum(cost) for cost in zip(*costs, strict=True))
    return Budget(gpus, size, steps, cached, live if live != cached else None)


def _of_loss(model: UnifiedModule, loss: str) -> tuple[float, float]:
    """FLOPs of a sample of one loss: with cached features, and live."""
    if loss == "understanding":
        qwen = model.understanding.vlm
        return (flops.understanding_step(qwen, qwen.image_tokens() + PROMPT, ANSWER),) * 2
    if loss == "generation":
        return _of_generation(model)
    live = counted(model, loss)
    if loss == "encoding":
        return live, live
    return live - flops.image_encoder(model.encoder).forward, live


def _of_generation(model: UnifiedModule) -> tuple[float, float]:
    qwen, dit = model.understanding.vlm, model.generation.dit
    queries = model.generation.num_queries
    encoder = flops.image_encoder(model.encoder).forward
    if any(path.startswith("understanding") for path in model.trainable):
        every, made = (
            flops.language_model(qwen, PROMPT + queries),
            flops.velocity_model(dit, queries),
        )
        cached = every.forward + every.backward + made.forward + made.backward
    else:
        cached = flops.generation_step(qwen, dit, None, PROMPT, queries).total
    return cached, cached + encoder


def counted(model: UnifiedModule, loss: str) -> float:
    """FLOPs of one step of a loss of images, backward pass included, by torch's counter."""
    with torch.device("meta"):
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    side, ids = model.image_size, torch.ones(1, PROMPT, dtype=torch.long)
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    number = torch.zeros(1, dtype=torch.long)
    batch = Batch(IMAGE_GENERATION, ["one"], 1, number, ids, ids, target_pixels=pixels).to("meta")
    return count_flops(lambda: model.train().step(batch)[0].backward())


def main() -> None:
    """Print the line of one recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset")
    parser.add_argument("stage")
    parser.add_argument("--gpus", type=COUNT, required=True)
    parsed = parser.parse_args()
    print(budget(parsed.preset, parsed.stage, parsed.gpus).line(parsed.preset))


if __name__ == "__main__":
    run(main)
