"""The generation losses. Convention, here and everywhere: t in [0,1], t = 1 is pure noise,

    x_t    = (1 - t) * features + t * noise
    target = noise - features             (the velocity dx_t/dt, constant along the path)
    loss   = mean((velocity_model(x_t, t, condition) - target)^2)   in float32

This is rectified flow (Liu et al. 2022, arXiv 2209.03003) in the orientation of diffusers and of
BLIP3-o. The sampler integrates the same velocity from t = 1 down to t = 0.
Shape letters: see `triptych.interfaces`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.utils.errors import UserError
from triptych.utils.limits import POSITIVE

TimestepSampling = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class FlowConfig:
    """Draws of a flow objective in training."""

    timestep_sampling: TimestepSampling = "uniform"
    """Distribution of training times, see `sample_time`."""
    shift: float | Literal["auto"] = 1.0
    """Shift of times towards noise, in training and in sampling alike, see `shift_time`; 1 as
    published. "auto" is `dimension_shift` of the features, whose deviation is measured on the first
    training batch, or is known of an encoder that standardizes, and kept in the weights."""
    num_noise_samples: int = 1
    """Noises and times for each sample, whose condition and features are computed once; 1 as
    published."""
    cond_drop_prob: float = 0.1
    """Probability of training without condition, for guidance."""

    def __post_init__(self) -> None:
        if self.shift != "auto" and self.shift not in POSITIVE:
            raise UserError(f"flow.shift is {str(self.shift)[:40]}; give {POSITIVE}, or auto.")

    source_drop_prob: float = 0.1
    """Probability of training an edit without its source image, for guidance by the image, where
    the velocity model takes one; independent of the condition."""


@dataclass(frozen=True)
class Objective:
    """Training objective: target features and loss; section 3 of the paper compares the three."""

    target: Literal["clip", "vae"]
    """Source of the target features: the image encoder, or the VAE's latents."""
    loss: Literal["flow", "mse"]
    """Flow matching from noise, or regression in one pass."""


OBJECTIVES = {
    "clip_flow": Objective("clip", "flow"),
    "clip_mse": Objective("clip", "mse"),
    "vae_flow": Objective("vae", "flow"),
}


def path(features: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point x_t of the straight path and its velocity, both [B,C,h,w]; t [B] in [0,1]."""
    t = t.to(features.dtype)[:, None, None, None]
    return (1 - t) * features + t * noise, noise - features


def shift_time(t, shift: float):
    """shift * t / (1 + (shift - 1) * t) (Esser et al. 2024, arXiv 2403.03206, eq. 23).

    A shift above 1 moves times towards noise. At time t a model learns what a signal-to-noise
    ratio of (1 - t) / t leaves open, and redundant features are readable through strong noise.
    """
    return shift * t / (1 + (shift - 1) * t)


REFERENCE_DIMENSION = 4096
"""n of `dimension_shift`: values of the latents, 32x32x4, that an unshifted flow suits."""


def dimension_shift(shape: tuple[int, int, int], std: float | Tensor) -> Any:
    """sqrt(m / n) * std for features [B,*shape] with m values, n = `REFERENCE_DIMENSION`.

    At equal noise, m values of redundant features are read sqrt(m / n) times as well as n (Esser et
    al. 2024, section 5.3.2; for features, Scale-RAE, arXiv 2601.16208). That rule is for unit
    deviation. At time t, features of deviation s have the signal-to-noise ratio s (1 - t) / t,
    equal to that of unit features at t' for t / (1 - t) = s t' / (1 - t'); a shift a is the factor
    a of t / (1 - t), so that both together shift by their product.
    """
    return (math.prod(shape) / REFERENCE_DIMENSION) ** 0.5 * std


def sample_time(
    uniform: Tensor, normal: Tensor, how: TimestepSampling, shift: float | Tensor = 1.0
) -> Tensor:
    """t [B] in (0,1] from draws u ~ U[0,1) and n ~ N(0,1), both [B].

    "uniform": the 1000 discrete times 1/1000 ... 1000/1000, as published. In float64: a
    model receives 1000 t, which for ten of them would not be an integer in float32.
    "logit_normal": sigmoid(n), denser in the middle (Esser et al. 2024, arXiv 2403.03206).
    Both are then shifted, see `shift_time`; 1 shifts nothing.
    """
    if how == "uniform":
        t = (torch.floor(1000 * uniform.double()) + 1) / 1000
    else:
        t = torch.sigmoid(normal)
    return shift_time(t, shift)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements, in float32 whatever the inputs; scalar."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
