"""The generation panel: latent queries, and a diffusion transformer that makes image features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from triptych.contracts import (
    TEXT_TO_IMAGE,
    Batch,
    Condition,
    ImageEncoder,
    Preprocessing,
    Understander,
    VelocityModel,
)
from triptych.freezing import Optimization
from triptych.loss import OBJECTIVES, TimeSampling, mse, path, sample_time
from triptych.modules.panel import Metrics, Panel
from triptych.randomness import normal, uniform
from triptych.sampler import noise_from_seeds, sample_flow, sample_regression
from triptych.weights import WeightFiles


class GenerationModule(Panel):
    """Queries run through the language model; their outputs condition the velocity model.

    Args:
        dit: the velocity model.
        number_of_queries: N.
        objective: "clip_flow" (CLIP features, flow matching), "clip_mse" (CLIP features,
            regression) or "vae_flow" (VAE latents, flow matching).
        query_std: deviation of the queries' initialization; 1 as published.
        time_sampling: distribution of training times, see `loss.sample_time`.
        drop: probability of training without condition, for guidance.
        steps, guidance: defaults of sampling.
        integer_times: sample as published, see `sampler.sample_flow`.
        understander, encoder: only when this panel is the root, alone.
        optimization, trains, weights, seed: see `Panel`; used when this panel is the root.
    """

    task = TEXT_TO_IMAGE

    def __init__(
        self,
        dit: VelocityModel,
        number_of_queries: int = 64,
        objective: Literal["clip_flow", "clip_mse", "vae_flow"] = "clip_flow",
        query_std: float = 1.0,
        time_sampling: TimeSampling = "uniform",
        drop: float = 0.1,
        steps: int = 30,
        guidance: float = 3.0,
        integer_times: bool = False,
        max_tokens: int = 512,
        understander: Understander | None = None,
        encoder: ImageEncoder | None = None,
        optimization: Optimization | None = None,
        trains: list[str] | None = None,
        weights: WeightFiles | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimization, trains or ["queries", "dit"], weights, seed)
        self.dit, self.number_of_queries = dit, number_of_queries
        self.objective, self.query_std = OBJECTIVES[objective], query_std
        self.time_sampling, self.drop = time_sampling, drop
        self.steps, self.guidance, self.max_tokens = steps, guidance, max_tokens
        self.integer_times = integer_times
        self.understander, self.encoder = understander, encoder
        if understander is not None and encoder is not None:
            self.set_shapes(encoder.feature_shape, understander.width)

    def set_shapes(self, feature_shape: tuple[int, int, int], condition_width: int) -> None:
        """What is generated (C,h,w) and the width D of the condition; before `build`."""
        self.feature_shape, self.condition_width = feature_shape, condition_width
        self.dit.set_shapes(feature_shape, condition_width)

    def build(self) -> None:
        super().build()
        start = torch.randn(self.number_of_queries, self.condition_width) * self.query_std
        self.queries = nn.Parameter(start)

    def step(
        self,
        batch: Batch,
        understander: Understander | None = None,
        encoder: ImageEncoder | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Prompt [B,T] -> condition [B,N,D]; features [B,C,h,w] -> x_t, target; loss."""
        understander = understander or self.understander
        encoder = encoder or self.encoder
        condition = understander.condition(
            batch.input_ids,
            batch.attention_mask,
            self.queries,
            batch.understanding_pixels,
            batch.image_grid_thw,
        )
        features = batch.target_features
        if features is None:
            with torch.no_grad():
                features = encoder(batch.target_pixels).float()
        if self.objective.loss == "mse":
            x_t, t, target = torch.zeros_like(features), features.new_ones(len(batch)), features
        else:
            x_t, t, target, condition = self._flow(batch, features, condition)
        loss = mse(self.dit(x_t, t, condition.states), target)
        return loss, {"generation": loss.detach()}

    def _flow(self, batch: Batch, features: Tensor, condition: Condition):
        device, samples = features.device, batch.samples
        noise = normal(features.shape[1:], self.seed, "noise", samples, device)
        t = sample_time(
            uniform(self.seed, "time", samples, device),
            normal((), self.seed, "time-normal", samples, device),
            self.time_sampling,
        )
        x_t, target = path(features, noise, t)
        dropped = uniform(self.seed, "drop", samples, device) < self.drop
        return x_t, t, target, condition.drop(dropped)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        seeds: list[int],
        steps: int | None = None,
        guidance: float | None = None,
        on_step=None,
    ) -> Tensor:
        """Features [B,C,h,w] for a condition [B,N,D]; picture i depends on seeds[i] alone."""
        if self.objective.loss == "mse":
            return sample_regression(self.dit, condition, self.feature_shape)
        noise = noise_from_seeds(self.feature_shape, seeds, condition.states.device)
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        return sample_flow(self.dit, condition, noise, steps, guidance, on_step, self.integer_times)

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            tokenizer=self.understander.tokenizer,
            max_tokens=self.max_tokens,
            picture_size=self.encoder.image_size,
        )
