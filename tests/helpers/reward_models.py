"""Small models that learn from rewards, and their data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from builders import needed, unified
from torch import Tensor

from triptych.checkpoints import WeightFiles
from triptych.data_modules import DatasetConfig, MixedDataModule, ShapesPrompts
from triptych.interfaces import TEXT_TO_REWARD, FlowSamplerConfig, RewardSample
from triptych.modules import (
    AdvantageWeightedMatching,
    DiffusionNFT,
    FlowGRPO,
    RewardTuningModule,
    UnifiedModule,
)

SAMPLING = FlowSamplerConfig(num_inference_steps=2, guidance_scale=1.0, name="dpm++")
ALGORITHMS: dict[str, Callable[[], Any]] = {
    "nft": DiffusionNFT,
    "matching": AdvantageWeightedMatching,
    "grpo": partial(FlowGRPO, 3),
    "cps": partial(FlowGRPO, 3, step="cps", window=1, window_iterations=1),
}


def brightness(images: Tensor, samples: list[RewardSample]) -> Tensor:
    """A reward: the mean of an image, from 0 to 1."""
    return images.float().mean((1, 2, 3)) / 255


def model_of(
    weights: WeightFiles, algorithm: str = "nft", reward: Any = brightness, **settings: Any
) -> UnifiedModule:
    """`unified` in the stage rl: three images a prompt."""
    model = {name: settings.pop(name) for name in ("execution",) if name in settings}
    options = {"group_size": 3, "sampling": SAMPLING, "draw_batch_size": 4, **settings}
    return unified(
        "rl",
        weights=needed(weights, "stage2"),
        loss_weights={"reward_tuning": 1.0},
        trainable=["generation"],
        reward_tuning=RewardTuningModule(ALGORITHMS[algorithm](), **options),
        reward=reward,
        **model,
    )


def prompts(**settings: Any) -> MixedDataModule:
    """Forty captions, two a batch, each for two steps."""
    datasets = {"prompts": DatasetConfig(ShapesPrompts(number=40), TEXT_TO_REWARD)}
    options = {"batch_size": 2, "num_val_samples": 4, "length_bucket_batches": 1}
    return MixedDataModule(datasets, **{**options, "steps_per_batch": 2, **settings})
