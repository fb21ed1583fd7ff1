"""The generation panel: latent queries, and a diffusion transformer that makes image features."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from triptych.interfaces import (
    IMAGE_GENERATION,
    Batch,
    Condition,
    FlowSamplerConfig,
    ImageEncoder,
    Preprocessing,
    Source,
    VelocityModel,
    VisionLanguageModel,
    bind_condition,
    drawn,
)
from triptych.loss import OBJECTIVES, FlowConfig, dimension_shift, mse, path, sample_time
from triptych.modules.auto_shift import measured_std, say_shift
from triptych.modules.base import BaseModule, Metrics, target_features
from triptych.modules.source import source_of
from triptych.prompts import PromptConfig
from triptych.sampler import (
    OnStep,
    model_calls,
    noise_from_seeds,
    sample_flow,
    sample_regression,
)
from triptych.training.fsdp import full_tensor
from triptych.utils.errors import UserError
from triptych.utils.finite import all_finite, require_finite
from triptych.utils.rng import Draw, normal

DEFAULT_FLOW, DEFAULT_SAMPLING, DEFAULT_PROMPT = FlowConfig(), FlowSamplerConfig(), PromptConfig()


class GenerationModule(BaseModule):
    """Queries run through the language model; their outputs condition the velocity model.

    Args:
        dit: the velocity model.
        num_queries: N.
        num_registers: number of learned queries before these whose outputs the velocity model does
            not see: room for what no other query should hold, like the quasi-register tokens of
            Illustrious (arXiv 2409.19946). They are the first rows of `queries`.
        objective: "clip_flow" (CLIP features, flow matching), "clip_mse" (CLIP features,
            regression) or "vae_flow" (VAE latents, flow matching).
        query_init_std: deviation of the queries' initialization; 1 as published.
        flow: draws of noise, times and dropped conditions, of a flow objective.
        sampling: default settings of `sample`.
        prompt: templates of captions, and their length limit.
        vlm, encoder: language model and encoder of the target features of a panel that is the
            root; a composer connects its own.
        trainable: as of `BaseModule`; None is the queries and the velocity model.
        training: other arguments of `BaseModule`, for a panel that is the root.
    """

    batch_objective = IMAGE_GENERATION

    def __init__(
        self,
        dit: VelocityModel,
        num_queries: int = 64,
        objective: Literal["clip_flow", "clip_mse", "vae_flow"] = "clip_flow",
        *,
        num_registers: int = 0,
        query_init_std: float = 1.0,
        flow: FlowConfig = DEFAULT_FLOW,
        sampling: FlowSamplerConfig = DEFAULT_SAMPLING,
        prompt: PromptConfig = DEFAULT_PROMPT,
        vlm: VisionLanguageModel | None = None,
        encoder: ImageEncoder | None = None,
        trainable: list[str] | None = None,
        **training: Any,
    ) -> None:
        sampling.check()
        if num_queries < 1 or num_registers < 0:
            raise UserError(
                f"generation has num_queries {num_queries} and num_registers {num_registers}; give "
                "1 query or more, and 0 registers or more."
            )
        super().__init__(trainable=trainable or ["queries", "dit"], **training)
        self.dit, self.num_queries, self.num_registers = dit, num_queries, num_registers
        self.objective, self.query_init_std = OBJECTIVES[objective], query_init_std
        self.flow, self.sampling, self.prompt = flow, sampling, prompt
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

    @property
    def takes_source(self) -> bool:
        """Whether the velocity model sees the source images of edits."""
        return self.dit.takes_source

    def build_own(self) -> None:
        rows = self.num_registers + self.num_queries
        start = torch.randn(rows, self.condition_width) * self.query_init_std
        self.queries = nn.Parameter(start)
        if self.flow.shift == "auto" and self.objective.loss == "flow":
            known = self._neighbours[1].feature_std or 0.0  # 0: not measured so far
            self.register_buffer("feature_std", torch.tensor(known, dtype=torch.float32))
            self._std_is_final = False

    @property
    def shift(self) -> float:
        """The shift of times in sampling.

        Raises:
            UserError: it is "auto", and the deviation of the features was never measured.
        """
        if self.flow.shift != "auto" or self.objective.loss != "flow":
            return 1.0 if self.flow.shift == "auto" else self.flow.shift
        std = float(self.feature_std)
        if not std > 0:
            raise UserError(
                "flow.shift is auto, and these weights do not hold the measured deviation of their "
                "features; train them with it, which measures that first, or set "
                "--model.generation.flow.shift to the number that they were trained with."
            )
        return dimension_shift(self.feature_shape, std)

    def _shift_in_training(self, features: Tensor) -> float | Tensor:
        """`shift` in the loss; the first training step measures what it follows from."""
        if self.flow.shift != "auto":
            return self.flow.shift
        if self._std_is_final:
            return dimension_shift(self.feature_shape, self.feature_std.double())
        measured = measured_std(features, over_ranks=self.training)
        std = torch.where(self.feature_std > 0, self.feature_std, measured.float())
        if self.training:  # a check of the validation before training keeps nothing
            self.feature_std.copy_(std)
            self._std_is_final = True
            if not isinstance(std, FakeTensor):
                known = self._neighbours[1].feature_std is not None
                say_shift(self.feature_shape, float(std), known)
        return dimension_shift(self.feature_shape, std.double())

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Prompt [B,T] -> condition [B,N,D]; features [B,C,h,w] -> x_t, target; loss.

        A flow objective has R = `num_noise_samples` rows for each sample in place of one.
        """
        _, encoder = self._neighbours
        condition = self.condition_of(batch)
        features = target_features(batch, encoder)
        source = self.source_of(batch)
        if self.objective.loss == "mse":
            x_t, t, target = torch.zeros_like(features), features.new_ones(len(batch)), features
        else:
            flow = self.flow
            draws = drawn(batch, self.random_draws(), self.seed, features.device)
            shift = self._shift_in_training(features)
            features = features.repeat_interleave(flow.num_noise_samples, 0)
            condition = condition.repeat_interleave(flow.num_noise_samples)
            t = sample_time(draws["time"], draws["time-normal"], flow.timestep_sampling, shift)
            x_t, target = path(features, draws["noise"], t)
            condition = condition.drop(draws["drop"] < flow.cond_drop_prob)
            if source is not None:
                dropped = draws["source-drop"] < flow.source_drop_prob
                source = source.repeat_interleave(flow.num_noise_samples).drop(dropped)
        loss = mse(bind_condition(self.dit, condition.hidden_states, source=source)(x_t, t), target)
        return loss, {"generation": loss.detach()}

    def condition_of(self, batch: Batch) -> Condition:
        """Condition [B,N,D] of the images of a batch, by its prompts."""
        return self.condition(
            batch.input_ids,
            batch.attention_mask,
            *batch.shown,
            position_ids=batch.position_ids,
            num_shared_prefix_tokens=batch.num_shared_prefix_tokens,
            **batch.queries_of_prompts,
        )

    def condition(
        self, input_ids: Tensor, attention_mask: Tensor, *shown: Tensor, **options: Any
    ) -> Condition:
        """Condition [B,N,D] of prompts [B,T]; arguments as of `VisionLanguageModel.condition`."""
        vlm, _ = self._neighbours
        queries = full_tensor(self.queries)
        states = vlm.condition(input_ids, attention_mask, queries, *shown, **options).hidden_states
        return Condition(states[:, self.num_registers :])

    def source_of(self, batch: Batch) -> Source | None:
        """Source images of a batch, by the encoder of the targets; None if the model takes none."""
        return source_of(batch, self._neighbours[1]) if self.takes_source else None

    def random_draws(self) -> list[Draw]:
        """Noise, time, dropped conditions and dropped source images of a flow objective."""
        if self.objective.loss != "flow":
            return []
        repeats = self.flow.num_noise_samples
        draws = [
            Draw("noise", tuple(self.feature_shape), "normal", repeats),
            Draw("time", repeats=repeats),
            Draw("time-normal", (), "normal", repeats),
            Draw("drop", repeats=repeats),
        ]
        return [*draws, Draw("source-drop", repeats=repeats)] if self.takes_source else draws

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
        _, encoder = self._neighbours
        condition = self.condition_of(batch)
        features = target_features(batch, encoder)
        velocity = bind_condition(self.dit, condition.hidden_states, source=self.source_of(batch))
        noise = normal(features.shape[1:], self.seed, "loss-at", batch.sample_ids, features.device)
        losses = []
        for timestep in timesteps:
            t = torch.full((len(batch),), timestep, dtype=torch.float64, device=features.device)
            x_t, target = path(features, noise, t)
            losses.append(mse(velocity(x_t, t), target))
        return torch.stack(losses)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        seeds: list[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        negative_condition: Tensor | None = None,
        source: Source | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Features [B,C,h,w] for a condition [B,N,D], each from only its seed, within rounding.

        `num_inference_steps`, both scales, `guidance_interval` and `sampler` replace those in
        `sampling`; see `sampler.sample_flow` for the rest. A `source` is for a model that
        `takes_source`.

        Raises:
            NotFiniteError: the features, or the condition, are NaN or infinite.
        """
        if self.objective.loss == "mse":
            features = sample_regression(self.dit, condition, self.feature_shape, source)
            if on_step is not None:
                on_step(0, features, features)
        else:
            sampling = self.sampling.updated(
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                image_guidance_scale=image_guidance_scale,
                guidance_interval=guidance_interval,
                name=sampler,
            )
            features = sample_flow(
                self.dit,
                condition,
                noise_from_seeds(self.feature_shape, seeds, condition.hidden_states.device),
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                sampler=sampling.name,
                integer_timesteps=sampling.integer_timesteps,
                shift=self.shift,
                guidance_interval=sampling.guidance_interval,
                guidance_rescale=guidance_rescale or 0.0,
                negative_condition=negative_condition,
                source=source,
                image_guidance_scale=sampling.image_guidance_scale,
                on_step=on_step,
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
        sampling = self.sampling.updated(num_inference_steps=num_inference_steps, name=sampler)
        return model_calls(sampling.name, sampling.num_inference_steps)

    def preprocessing(self) -> Preprocessing:
        vlm, encoder = self._neighbours
        return Preprocessing(
            tokenizer=vlm.tokenizer,
            max_tokens=self.prompt.max_tokens,
            image_size=encoder.image_size,
            understanding_size=vlm.image_size,
            image_tokens=vlm.image_tokens(),
            image_inputs=vlm.image_inputs,
            position_ids=vlm.position_ids,
            template=self.prompt.template,
            training_template=self.prompt.training_template,
            features=partial(self.feature_config_of, encoder, encoder.image_size),
            draws=tuple(self.random_draws()),
            seed=self.seed,
            takes_source=self.takes_source,
            images_too=False,
        )
