"""Algorithms that teach a generator from the scores of its own images.

Each says how images are drawn, and gives a loss for a drawn image at one noise level; the losses
themselves are in `triptych.policy_loss`. Of an image, a noise level is drawn anew in every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.interfaces import Velocity
from triptych.loss import path, shift_time
from triptych.policy_loss import (
    Spread,
    clipped_policy_loss,
    matching_log_prob,
    nft_loss,
    optimality,
)
from triptych.sampler import times
from triptych.stochastic_steps import (
    GaussianStep,
    Step,
    coefficient_preserving_step,
    flow_sde_step,
)
from triptych.utils.errors import UserError
from triptych.utils.limits import POSITIVE, require_steps
from triptych.utils.rng import normal, uniform

Metrics = dict[str, Tensor]


@dataclass
class Drawn:
    """Images of one iteration that a policy has drawn, and their noise; float32."""

    rows: list[int]
    """[R] number of each image, the source of its draws."""
    features: Tensor
    """[R,C,h,w]"""
    advantages: Tensor
    """[R], 0 until they are scored."""
    path: Tensor | None = None
    """[R,S+1,C,h,w], the samples of all steps, from noise to features; of stochastic policies."""
    stochastic: range | None = None
    """Steps of `path` that were drawn with noise."""


@dataclass(frozen=True)
class DrawSettings:
    """Settings of a training step that all algorithms share."""

    seed: int
    iteration: int
    """Number of sets of images drawn before."""
    repetition: int
    """Number of steps that have learned from this set before."""
    shift: float
    """Shift of times towards noise, of training and sampling."""

    def uniform(self, stream: str, rows: list[int], device: torch.device) -> Tensor:
        return uniform(self.seed, f"{stream}-{self.repetition}", rows, device)


class PolicyAlgorithm(ABC):
    """Draws, and the loss of what was drawn."""

    spread: Spread = "all"
    """Deviation by which rewards are divided, see `policy_loss.advantages`."""
    draws_by_sampler = True
    """Whether images come from the ordinary sampler; else from `draw`."""

    def draw(
        self, velocity: Velocity, noise: Tensor, rows: list[int], settings: DrawSettings
    ) -> Drawn:
        """Draw images from `noise` [R,C,h,w], where `draws_by_sampler` is false."""
        raise NotImplementedError

    @abstractmethod
    def point(self, drawn: Drawn, settings: DrawSettings) -> tuple[Tensor, Tensor]:
        """x_t [R,C,h,w] and t [R] at which this step asks for velocities."""

    @abstractmethod
    def loss(
        self, velocity: Tensor, old_velocity: Tensor, drawn: Drawn, settings: DrawSettings
    ) -> tuple[Tensor, Metrics]:
        """Loss [R] of velocities [R,C,h,w] at `point`, and metrics.

        Both velocities are of the same call on the same rows, that of the policy that drew with its
        weights: before the first update they are equal to the bit, which those of the draw, in
        batches of another size, are not.
        """


class _OnThePath(PolicyAlgorithm):
    """Algorithms that noise a drawn image anew: any sampler draws, and probabilities do not count.

    Args:
        spread: deviation by which rewards are divided.
    """

    def __init__(self, spread: Spread) -> None:
        self.spread = spread

    def point(self, drawn: Drawn, settings: DrawSettings) -> tuple[Tensor, Tensor]:
        x_t, _, t = self._noised(drawn, settings)
        return x_t, t

    def _noised(self, drawn: Drawn, settings: DrawSettings) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, its target velocity, and t: uniform, shifted."""
        device, shape = drawn.features.device, drawn.features.shape[1:]
        t = shift_time(1 - settings.uniform("policy-time", drawn.rows, device), settings.shift)
        stream = f"policy-noise-{settings.repetition}"
        noise = normal(shape, settings.seed, stream, drawn.rows, device)
        return *path(drawn.features, noise, t), t


class DiffusionNFT(_OnThePath):
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117), see `policy_loss.nft_loss`.

    Args:
        beta: strength of the reflection; 1 as published for one reward, 0.1 for several.
        limit: advantage at which an image counts as wholly good or bad.
        spread: deviation by which rewards are divided; none suits rewards from 0 to 1.
    """

    def __init__(self, beta: float = 1.0, limit: float = 1.0, spread: Spread = "none") -> None:
        if beta not in POSITIVE or limit not in POSITIVE:
            raise UserError(f"DiffusionNFT has beta {beta} and limit {limit}; give {POSITIVE}.")
        super().__init__(spread)
        self.beta, self.limit = beta, limit

    def loss(
        self, velocity: Tensor, old_velocity: Tensor, drawn: Drawn, settings: DrawSettings
    ) -> tuple[Tensor, Metrics]:
        x_t, _, t = self._noised(drawn, settings)
        r = optimality(drawn.advantages, self.limit)
        found = nft_loss(
            velocity,
            old_velocity,
            features=drawn.features,
            x_t=x_t,
            t=t,
            optimality=r,
            beta=self.beta,
        )
        return found, {"optimality": r.mean()}


class AdvantageWeightedMatching(_OnThePath):
    """Advantage weighted matching (Xue et al. 2025, arXiv 2509.25050).

    Args:
        clip: bound of the ratio of likelihoods, see `policy_loss.matching_log_prob`.
        spread: deviation by which rewards are divided.
    """

    def __init__(self, clip: float = 1e-2, spread: Spread = "all") -> None:
        if clip not in POSITIVE:
            raise UserError(f"AdvantageWeightedMatching has clip {clip}; give {POSITIVE}.")
        super().__init__(spread)
        self.clip = clip

    def loss(
        self, velocity: Tensor, old_velocity: Tensor, drawn: Drawn, settings: DrawSettings
    ) -> tuple[Tensor, Metrics]:
        _, target, _ = self._noised(drawn, settings)
        old = matching_log_prob(old_velocity, target)
        new = matching_log_prob(velocity, target)
        found = clipped_policy_loss(new, old, drawn.advantages, self.clip)
        return found, ratio_metrics(new, old, self.clip)


STEPS: dict[str, Step] = {"sde": flow_sde_step, "cps": coefficient_preserving_step}


class FlowGRPO(PolicyAlgorithm):
    """Flow-GRPO (Liu et al. 2025, arXiv 2505.05470): the steps of a stochastic sampler are actions.

    Args:
        num_inference_steps: number of steps that draw an image.
        noise_level: amount of noise of a step.
        step: "sde" as published, or "cps", the steps of Flow-CPS (arXiv 2509.05952) with its
            distances in place of log-probabilities.
        window: number of consecutive steps with noise, the others plain; as MixGRPO (Li et al.
            2025, arXiv 2507.21802). None: all but the last.
        window_iterations: number of iterations after which the window moves on by a step.
        clip: bound of the ratio of probabilities.
        spread: deviation by which rewards are divided.
    """

    draws_by_sampler = False

    def __init__(
        self,
        num_inference_steps: int = 10,
        *,
        noise_level: float = 0.7,
        step: Literal["sde", "cps"] = "sde",
        window: int | None = None,
        window_iterations: int = 25,
        clip: float = 1e-4,
        spread: Spread = "all",
    ) -> None:
        require_steps(num_inference_steps)
        if step not in STEPS:
            raise UserError(f"FlowGRPO has step {step!r}; choose one of {', '.join(STEPS)}.")
        limit = 1.0 if step == "cps" else float("inf")
        if noise_level not in POSITIVE or noise_level > limit or clip not in POSITIVE:
            raise UserError(
                f"FlowGRPO has noise_level {noise_level} and clip {clip}; give {POSITIVE}"
                + (", and a noise_level of at most 1 for cps." if step == "cps" else ".")
            )
        # the last step of an SDE ends at t = 0, where it has no noise left to draw with cps
        self.most = num_inference_steps - 1
        if self.most < 1 or (window is not None and not 1 <= window <= self.most):
            raise UserError(
                f"FlowGRPO has {num_inference_steps} steps and window {window}; give 2 steps or "
                "more, and a window of 1 to all but the last of them."
            )
        self.num_inference_steps, self.noise_level = num_inference_steps, noise_level
        self.step, self.name = STEPS[step], step
        self.window, self.window_iterations = window, window_iterations
        self.clip, self.spread = clip, spread

    def grid(self, shift: float) -> list[float]:
        """Times of the steps, from 1 to 0."""
        return [*(shift_time(float(t), shift) for t in times(self.num_inference_steps)), 0.0]

    def stochastic(self, iteration: int) -> range:
        """Steps that are drawn with noise in an iteration."""
        if self.window is None:
            return range(self.most)
        places = self.most - self.window + 1
        first = iteration // self.window_iterations % places
        return range(first, first + self.window)

    def draw(
        self, velocity: Velocity, noise: Tensor, rows: list[int], settings: DrawSettings
    ) -> Drawn:
        grid, stochastic = self.grid(settings.shift), self.stochastic(settings.iteration)
        x, samples = noise.float(), [noise.float()]
        for index, (t, t_next) in enumerate(zip(grid, grid[1:], strict=False)):
            level = self.noise_level if index in stochastic else 0.0
            step = self._step(velocity(x, x.new_full((len(x),), t)), x, t, t_next, level)
            fresh = normal(x.shape[1:], settings.seed, f"policy-step-{index}", rows, x.device)
            x = step.sample(fresh)
            samples.append(x)
        return Drawn(rows, x, x.new_zeros(len(x)), torch.stack(samples, 1), stochastic)

    def point(self, drawn: Drawn, settings: DrawSettings) -> tuple[Tensor, Tensor]:
        indices = self._indices(drawn, settings)
        grid = torch.tensor(self.grid(settings.shift), device=indices.device)
        return drawn.path[torch.arange(len(indices)), indices], grid[indices]

    def loss(
        self, velocity: Tensor, old_velocity: Tensor, drawn: Drawn, settings: DrawSettings
    ) -> tuple[Tensor, Metrics]:
        indices, every = self._indices(drawn, settings), torch.arange(len(drawn.rows))
        grid = torch.tensor(self.grid(settings.shift), device=indices.device)
        level = torch.full_like(grid[indices], self.noise_level)
        x, following = drawn.path[every, indices], drawn.path[every, indices + 1]
        numbers = grid[indices], grid[indices + 1], level
        new, old = (
            self._log_prob(self.step(x, each, *numbers), following)
            for each in (velocity, old_velocity)
        )
        found = clipped_policy_loss(new, old, drawn.advantages, self.clip)
        return found, ratio_metrics(new, old, self.clip)

    def _indices(self, drawn: Drawn, settings: DrawSettings) -> Tensor:
        """One of the steps with noise for each image, int64 [R]."""
        u = settings.uniform("policy-index", drawn.rows, drawn.features.device)
        return drawn.stochastic.start + (u * len(drawn.stochastic)).long()

    def _step(
        self, velocity: Tensor, x: Tensor, t: float, t_next: float, level: float
    ) -> GaussianStep:
        numbers = (x.new_full((len(x),), number) for number in (t, t_next, level))
        return self.step(x, velocity, *numbers)

    def _log_prob(self, step: GaussianStep, value: Tensor) -> Tensor:
        return step.log_prob(value) if self.name == "sde" else step.squared_distance(value)


def ratio_metrics(log_prob: Tensor, old_log_prob: Tensor, clip: float) -> Metrics:
    """Mean and deviation of the ratio of probabilities, and shares beyond the clip."""
    ratio = (log_prob.detach() - old_log_prob).exp()
    return {
        "ratio": ratio.mean(),
        "ratio_std": ratio.std(correction=0),
        "clipped_above": (ratio > 1 + clip).float().mean(),
        "clipped_below": (ratio < 1 - clip).float().mean(),
    }
