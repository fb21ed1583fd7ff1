"""The generation panel: latent queries, and a diffusion transformer that makes image features."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.checkpoints import WeightFiles
from triptych.interfaces import (
    IMAGE_GENERATION,
    Batch,
    Condition,
    ImageEncoder,
    Preprocessing,
    VelocityModel,
    VisionLanguageModel,
)
from triptych.loss import OBJECTIVES, TimestepSampling, mse, path, sample_time
from triptych.modules.base import BaseModule, Metrics, target_features
from triptych.prompts import TemplateName
from triptych.sampler import (
    OnStep,
    model_calls,
    noise_from_seeds,
    require_sampler,
    require_steps,
    sample_flow,
    sample_regression,
)
from triptych.training.execution import Execution
from triptych.training.fsdp import full_tensor
from triptych.training.optimizer import Optimization
from triptych.utils.errors import UserError
from triptych.utils.finite import all_finite, require_finite
from triptych.utils.rng import normal, uniform


class GenerationModule(BaseModule):
    """Queries run through the language model; their outputs condition the velocity model.

    Args:
        dit: the velocity model.
        num_queries: N.
        objective: "clip_flow" (CLIP features, flow matching), "clip_mse" (CLIP features,
            regression) or "vae_flow" (VAE latents, flow matching).
        query_init_std: deviation of the queries' initialization; 1 as published.
        timestep_sampling: distribution of training times, see `loss.sample_time`.
        shift: moves times towards noise, in training and in sampling alike, see
            `loss.shift_time`; 1 as published.
        cond_drop_prob: probability of training without condition, for guidance.
        num_noise_samples: noises and times for each sample of a flow objective; its condition and
            its features are computed once. 1 as published.
        num_inference_steps, guidance_scale, sampler: defaults of sampling; see `sampler`.
        integer_timesteps: sample as published, see `sampler.sample_flow`.
        template, training_template: how a caption is put to the language model when images are
            asked for, and when it is learned and validated: names of `prompts.TEMPLATES`. One
            template for both, unless a training run of the published code goes on: there, training
            had two tokens more than sampling.
        vlm, encoder: only when this panel is the root, alone.
        optimization, trainable, weights, seed, execution: see `BaseModule`; used when this is the root.
    """

    batch_objective = IMAGE_GENERATION

    def __init__(
        self,
        dit: VelocityModel,
        num_queries: int = 64,
        objective: Literal["clip_flow", "clip_mse", "vae_flow"] = "clip_flow",
        query_init_std: float = 1.0,
        timestep_sampling: TimestepSampling = "uniform",
        shift: float = 1.0,
        cond_drop_prob: float = 0.1,
        num_noise_samples: int = 1,
        num_inference_steps: int = 30,
        guidance_scale: float = 3.0,
        integer_timesteps: bool = False,
        template: TemplateName = "inference",
        training_template: TemplateName = "inference",
        max_tokens: int = 512,
        vlm: VisionLanguageModel | None = None,
        encoder: ImageEncoder | None = None,
        optimization: Optimization | None = None,
        trainable: list[str] | None = None,
        weights: WeightFiles | None = None,
        seed: int = 0,
        execution: Execution | None = None,
        sampler: str = "euler",
    ) -> None:
        require_steps(num_inference_steps)
        require_sampler(sampler)
        super().__init__(optimization, trainable or ["queries", "dit"], weights, seed, execution)
        self.dit, self.num_queries = dit, num_queries
        self.objective, self.query_init_std = OBJECTIVES[objective], query_init_std
        self.timestep_sampling, self.shift = timestep_sampling, shift
        self.cond_drop_prob, self.num_noise_samples = cond_drop_prob, num_noise_samples
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.max_tokens = max_tokens
        self.integer_timesteps, self.sampler = integer_timesteps, sampler
        self.template, self.training_template = template, training_template
        self.vlm, self.encoder = vlm, encoder
        if vlm is not None and encoder is not None:
            self.connect(vlm, encoder)

    def connect(self, vlm: VisionLanguageModel, encoder: ImageEncoder) -> None:
        """Set the language model and the encoder of the target features, before `build`.

        They are kept in a tuple: their owner has registered them as its children.
        """
        self._neighbours = vlm, encoder
        self.feature_shape, self.condition_width = encoder.feature_shape, vlm.width
        self.dit.configure_shapes(self.feature_shape, self.condition_width)

    def build_own(self) -> None:
        start = torch.randn(self.num_queries, self.condition_width) * self.query_init_std
        self.queries = nn.Parameter(start)

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Prompt [B,T] -> condition [B,N,D]; features [B,C,h,w] -> x_t, target; loss.

        A flow objective has R = `num_noise_samples` rows for each sample in place of one.
        """
        vlm, encoder = self._neighbours
        queries = full_tensor(self.queries)
        condition = vlm.condition(
            batch.input_ids,
            batch.attention_mask,
            queries,
            *batch.shown,
            batch.num_shared_prefix_tokens,
        )
        features = target_features(batch, encoder)
        if self.objective.loss == "mse":
            x_t, t, target = torch.zeros_like(features), features.new_ones(len(batch)), features
        else:
            repeats, seed, device = self.num_noise_samples, self.seed, features.device
            samples = repeated_samples(batch.sample_ids, repeats)  # [B*R]
            features = features.repeat_interleave(repeats, 0)
            condition = Condition(condition.hidden_states.repeat_interleave(repeats, 0))
            noise = normal(features.shape[1:], seed, "noise", samples, device)
            u = uniform(seed, "time", samples, device)
            n = normal((), seed, "time-normal", samples, device)
            t = sample_time(u, n, self.timestep_sampling, self.shift)
            x_t, target = path(features, noise, t)
            dropped = uniform(seed, "drop", samples, device) < self.cond_drop_prob
            condition = condition.drop(dropped)
        loss = mse(self.dit(x_t, t, condition.hidden_states), target)
        return loss, {"generation": loss.detach()}

    @torch.no_grad()
    def loss_at_timesteps(self, batch: Batch, timesteps: list[float]) -> Tensor:
        """Flow loss at each of `timesteps` in (0,1], float32 [len(timesteps)]; nothing is dropped.

        Sample i has the same noise at all times, derived only from `batch.sample_ids`: two
        models, or one at two steps, are compared on the same numbers.

        Raises:
            UserError: the objective is not a flow.
        """
        if self.objective.loss != "flow":
            raise UserError("the loss at a noise level is that of a flow; this objective is none.")
        vlm, encoder = self._neighbours
        condition = vlm.condition(
            batch.input_ids, batch.attention_mask, full_tensor(self.queries), *batch.shown
        )
        features = target_features(batch, encoder)
        noise = normal(features.shape[1:], self.seed, "loss-at", batch.sample_ids, features.device)
        losses = []
        for timestep in timesteps:
            t = torch.full((len(batch),), timestep, dtype=torch.float64, device=features.device)
            x_t, target = path(features, noise, t)
            losses.append(mse(self.dit(x_t, t, condition.hidden_states), target))
        return torch.stack(losses)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        seeds: list[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        null: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Features [B,C,h,w] for a condition [B,N,D], each from only its seed, within rounding.

        `null` [1,N,D] is the condition that guidance leads away from; zeros by default. See
        `sampler.sample_flow` for the rest.

        Raises:
            NotFiniteError: the features, or the condition, are NaN or infinite.
        """
        if self.objective.loss == "mse":
            features = sample_regression(self.dit, condition, self.feature_shape)
            if on_step is not None:
                on_step(0, features, features)
        else:
            features = sample_flow(
                self.dit,
                condition,
                noise_from_seeds(self.feature_shape, seeds, condition.hidden_states.device),
                self.num_inference_steps if num_inference_steps is None else num_inference_steps,
                self.guidance_scale if guidance_scale is None else guidance_scale,
                on_step=on_step,
                shift=self.shift,
                integer_timesteps=self.integer_timesteps,
                null=null,
                sampler=sampler or self.sampler,
                guidance_interval=guidance_interval,
            )
        finite = all_finite(features)
        if not finite:  # the stage that began it is named
            require_finite(condition.hidden_states, "the language model's outputs at the queries")
        require_finite(finite, "the generator's image features")
        return features

    def model_calls(
        self, num_inference_steps: int | None = None, sampler: str | None = None
    ) -> int:
        """Number of calls of the velocity model in `sample`."""
        if self.objective.loss == "mse":
            return 1
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        return model_calls(sampler or self.sampler, steps)

    def preprocessing(self) -> Preprocessing:
        vlm, encoder = self._neighbours
        return Preprocessing(
            tokenizer=vlm.tokenizer,
            max_tokens=self.max_tokens,
            image_size=encoder.image_size,
            understanding_size=vlm.image_size,
            image_tokens=vlm.image_tokens(),
            image_inputs=vlm.image_inputs,
            template=self.template,
            training_template=self.training_template,
            features=partial(self.feature_config_of, encoder, encoder.image_size),
            images_too=False,
        )


def repeated_samples(samples: Tensor, repeats: int) -> Tensor:
    """Sample numbers [B] -> numbers [B*repeats] that draw noise, `repeats` for each sample."""
    return (samples[:, None] * repeats + torch.arange(repeats, device=samples.device)).flatten()
