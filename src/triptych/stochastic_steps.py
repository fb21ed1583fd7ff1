"""Steps of a flow with noise, which have probabilities.

From x at time t to x' at `t_next` < t, by a velocity v; x and v are [B,C,h,w], times and noise
levels [B]. Everything is float32: a log-probability in bfloat16 moves a ratio by more than the
losses clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianStep:
    """Distribution of x': normal with a mean [B,C,h,w] and a deviation [B,1,1,1].

    A deviation of 0 is a plain step, without a density.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """x' of standard normal noise."""
        return self.mean + self.std * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [B] at x' = `value`, a mean over values as in Flow-GRPO."""
        normal = torch.distributions.Normal(self.mean, self.std, validate_args=False)
        return normal.log_prob(value.float()).flatten(1).mean(1)

    def squared_distance(self, value: Tensor) -> Tensor:
        """-|x' - mean|^2 [B], a mean over values: what Flow-CPS takes for a log-probability."""
        return -(value.float() - self.mean).square().flatten(1).mean(1)


def flow_sde_step(
    x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor, noise_level: Tensor
) -> GaussianStep:
    """Euler-Maruyama step of Flow-GRPO's SDE (Liu et al. 2025, arXiv 2505.05470, eq. 9).

        s    = noise_level sqrt(t / (1 - t)),     dt = t_next - t
        mean = x (1 + s^2 dt / (2 t)) + v (1 + s^2 (1 - t) / (2 t)) dt,     std = s sqrt(-dt)

    Small steps give the marginal distributions of the flow at every time, whatever the noise level.
    At t = 1, where s is infinite, it is that of `t_next`, as in the published code.
    """
    t, t_next, noise_level = _as_columns(t, t_next, noise_level)
    at = torch.where(t >= 1, t_next, t)
    s = noise_level * (at / (1 - at)).sqrt()
    dt = t_next - t
    pull = s.square() / (2 * t)
    mean = x.float() * (1 + pull * dt) + velocity.float() * (1 + pull * (1 - t)) * dt
    return GaussianStep(mean, s * (-dt).sqrt())


def coefficient_preserving_step(
    x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor, noise_level: Tensor
) -> GaussianStep:
    """Step of Flow-CPS (Wang & Yu 2025, arXiv 2509.05952): some of the noise is drawn anew.

        std  = t_next sin(noise_level pi / 2)
        mean = (1 - t_next) (x - t v) + sqrt(t_next^2 - std^2) (x + (1 - t) v)

    The weights of the features and of all noise together are those of the flow at `t_next`, so
    that images of few steps are not grainy. Marginal distributions are those of the flow for a
    single image only, but there at every size of steps.
    """
    t, t_next, noise_level = _as_columns(t, t_next, noise_level)
    x, velocity = x.float(), velocity.float()
    std = t_next * (noise_level * (math.pi / 2)).sin()
    kept = (t_next.square() - std.square()).clamp(min=0).sqrt()
    mean = (1 - t_next) * (x - t * velocity) + kept * (x + (1 - t) * velocity)
    return GaussianStep(mean, std)


Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], GaussianStep]
"""`flow_sde_step` or `coefficient_preserving_step`."""


def _as_columns(*values: Tensor) -> list[Tensor]:
    return [value.float()[:, None, None, None] for value in values]
