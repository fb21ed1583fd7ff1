"""The training runs: four arms, the same seeds for each, the same FLOPs for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from triptych.inference.loading import describe_stage
from triptych.modules import UnifiedModule
from triptych.training import flops
from triptych.training.flop_counter import count_flops
from triptych.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
POINTS = 5  # of a learning curve, beside the one at step 0
CURVE_IMAGES = 120  # images a point

# Means of the shapes world's training samples, of which the tests draw some: tokens of a caption
# in its template, how many of them begin every prompt; tokens of a conversation with its image,
# how many of them are learned, how many images it has (text_only_ratio of
# conf/data/tiny/joint.yaml).
CAPTION, SHARED = 41.0, 23.0
CONVERSATION, LEARNED, IMAGES = 128.0, 42.0, 0.6

# Of one thread of a 2-core machine, for --plan alone: results hold what was measured instead.
CPU_SECONDS_A_STEP = 0.9  # of clip_flow, 64 samples, beside another run
CPU_SECONDS_AN_IMAGE = 0.09  # generated, decoded and checked
CPU_SECONDS_TO_START = 30.0  # of a fit and of its scoring: imports, weights


@dataclass(frozen=True)
class Arm:
    """One way to train; everything else is that of its stage's recipe."""

    name: str
    stage: str
    objective: str
    says: str
    """Description on the page."""
    flags: tuple[str, ...] = ()

    def model_flags(self) -> list[str]:
        """Flags of `triptych fit` that set the model of this arm."""
        return [f"--model.generation.init_args.objective={self.objective}", *self.flags]


# Latents of 6x6 positions, four to a token: as many tokens as CLIP features have.
TOKENS_OF_FOUR = "--model.generation.init_args.dit.init_args.patch_size=2"

# Queries and DiT learn at the rate of the other arms, so that the order alone differs; the language
# model, which has learned already, at that of joint.yaml.
RATES = (
    "--model.optimization.lr=3e-3",
    '--model.optimization.lr_overrides={"understanding": 5e-4}',
)

ARMS = (
    Arm("clip_flow", "stage2", "clip_flow", "CLIP features, flow matching; sequential"),
    Arm("clip_mse", "stage2", "clip_mse", "CLIP features, regression; sequential"),
    Arm(
        "vae_flow",
        "stage2",
        "vae_flow",
        "VAE latents, flow matching; sequential",
        (TOKENS_OF_FOUR,),
    ),
    Arm(
        "joint",
        "joint",
        "clip_flow",
        "CLIP features, flow matching; language model trained too",
        RATES,
    ),
)


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    arm: Arm
    seed: int
    steps: int
    flops: float
    """Of the whole run."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole study. Whoever goes on with one must have the same.

    Args:
        steps: of clip_flow; the other arms get as many as cost the same FLOPs.
        seeds: of initialization, noise and order of samples; each arm has all of them.
        images: images, and held-out captions, that a finished run is scored with.
        prompts, each: captions whose diversity is measured, and images for each.
    """

    steps: int = 800
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 480
    prompts: int = 60
    each: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; give 1 or more.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds are {list(self.seeds)}; give one or more, each once.")

    def runs(self) -> list[Run]:
        """Every seed of all arms before the next seed: a study that is stopped early compares."""
        per_step = {arm.name: step_flops(arm) for arm in ARMS}
        budget = self.steps * per_step["clip_flow"]
        found = []
        for seed in self.seeds:
            for arm in ARMS:
                steps = max(1, round(budget / per_step[arm.name]))
                found.append(Run(arm, seed, steps, steps * per_step[arm.name]))
        return found

    def every(self, run: Run) -> int:
        """Steps between two points of a run's curve."""
        return max(1, run.steps // POINTS)

    def cpu_seconds(self) -> float:
        """Of a run, roughly; all arms compute the same."""
        images = (POINTS + 1) * CURVE_IMAGES + self.images + self.prompts * self.each
        return (
            self.steps * CPU_SECONDS_A_STEP
            + images * CPU_SECONDS_AN_IMAGE
            + 2 * CPU_SECONDS_TO_START
        )


def table(plan: Plan, runs: Sequence[Run], done: Sequence[str], jobs: int) -> str:
    """The runs, and about how long those that are not done take, `jobs` at a time."""
    lines = [f"{'run':12} {'steps':>6} {'TFLOP':>7}  state"]
    for run in runs:
        state = "done" if run.name in done else "to do"
        lines.append(f"{run.name:12} {run.steps:6} {run.flops / 1e12:7.2f}  {state}")
    left = len(runs) - len(done)
    hours = left * plan.cpu_seconds() / jobs / 3600
    lines.append(
        f"{left} runs to do, {plan.cpu_seconds() / 60:.0f} CPU-minutes each; {hours:.1f} hours on "
        f"{jobs} quiet cores (an estimate)"
    )
    return "\n".join(lines)


# --- what a step costs ----------------------------------------------------------------------------


@cache
def step_flops(arm: Arm) -> float:
    """FLOPs of one training step of an arm, its whole batch."""
    model, size = describe(arm)
    if arm.stage == "joint":
        qwen = model.understanding.vlm
        understanding = flops.understanding_step(qwen, CONVERSATION, LEARNED, IMAGES)
        return size * (_generation_trained(model) + understanding)
    return size * _generation_frozen(model)


def describe(arm: Arm) -> tuple[UnifiedModule, int]:
    """An arm's model, of which nothing is built, and its batch size."""
    import yaml

    conf = ROOT / "conf"
    recipe = conf / "recipes" / "tiny" / f"{arm.stage}.yaml"
    files = [conf / "presets" / "tiny.yaml", conf / "stages" / f"{arm.stage}.yaml", recipe]
    model = describe_stage(files, arm.model_flags())
    return model, yaml.safe_load(recipe.read_text())["data"]["init_args"]["batch_size"]


def _generation_frozen(model: UnifiedModule) -> float:
    """A caption through the frozen language model, its draws through the DiT."""
    qwen, panel = model.understanding.vlm, model.generation
    step = flops.generation_step(qwen, panel.dit, None, CAPTION, panel.num_queries, shared=SHARED)
    return step.language_model + _draws(model) * step.velocity_model + target_flops(model)


def _generation_trained(model: UnifiedModule) -> float:
    """The same where the language model learns: all tokens take part in the backward pass."""
    qwen, panel = model.understanding.vlm, model.generation
    every = flops.language_model(qwen, CAPTION + panel.num_queries)
    made = flops.velocity_model(panel.dit, panel.num_queries)
    velocity = _draws(model) * (made.forward + made.backward)
    return every.forward + every.backward + velocity + target_flops(model)


def _draws(model: UnifiedModule) -> int:
    """Noises for each sample; a regression has none."""
    return (
        model.generation.flow.num_noise_samples if model.generation.objective.loss == "flow" else 1
    )


def target_flops(model: UnifiedModule) -> float:
    """One image through the encoder whose features are the target; counted, nothing computed."""
    encoder = model.target_encoder
    with torch.device("meta"):
        encoder.build()
        pixels = torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)
        return float(count_flops(lambda: encoder(pixels)))
