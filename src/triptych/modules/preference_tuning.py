"""Learning from pairs of images of one prompt, of which people prefer one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces import (
    PREFERRED_GENERATION,
    Batch,
    ImageEncoder,
    bind_condition,
    drawn,
)
from triptych.loss import path, sample_time
from triptych.modules.base import BaseModule, Metrics, encoded
from triptych.modules.generation import GenerationModule
from triptych.policy_loss import matching_log_prob, preference_loss
from triptych.training.weight_copy import WeightCopy
from triptych.utils.errors import UserError
from triptych.utils.limits import POSITIVE
from triptych.utils.rng import Draw


class PreferenceTuningModule(BaseModule):
    """Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) in its flow form.

    Both images of a pair are noised alike. The generator learns to explain the preferred one better
    than the model before did, by more than the other; see `policy_loss.preference_loss`.

    Args:
        beta: strength with which it is held near the model before; published are 2000 and 5000,
            for errors that are means over values, as here.
        training: arguments of `BaseModule`.
    """

    batch_objective = PREFERRED_GENERATION

    def __init__(self, beta: float = 2000.0, **training: Any) -> None:
        super().__init__(**training)
        if beta not in POSITIVE:
            raise UserError(f"preference_tuning.beta is {beta}; give {POSITIVE}.")
        self.beta = beta
        self._reference: WeightCopy | None = None
        self._state: Mapping[str, Any] = {}

    def connect(self, generation: GenerationModule, encoder: ImageEncoder) -> None:
        """Set the panel that learns and the encoder of its targets.

        They are kept in a tuple: their owner has registered them as its children.

        Raises:
            UserError: it is trained by regression.
        """
        if generation.objective.loss != "flow":
            raise UserError(
                "preferences teach a flow, and the generation objective is a regression."
            )
        self._neighbours = generation, encoder

    def build_own(self) -> None:
        """Nothing is built: all that learns is of the generation panel."""

    def random_draws(self) -> list[Draw]:
        """Noise and time of a pair."""
        generation, _ = self._neighbours
        return [
            Draw("pair-noise", tuple(generation.feature_shape), "normal"),
            Draw("pair-time"),
            Draw("pair-time-normal", (), "normal"),
        ]

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Prompts [B], features [2B,C,h,w] of the preferred images and of the others -> loss."""
        generation, encoder = self._neighbours
        if self._reference is None:
            self._reference = WeightCopy(generation, self._state.get("reference"))
            self._state = {}
        features = encoded(encoder, torch.cat([batch.target_pixels, batch.rejected_pixels]))
        draws = drawn(batch, self.random_draws(), self.seed, features.device)
        t = sample_time(
            draws["pair-time"],
            draws["pair-time-normal"],
            generation.flow.timestep_sampling,
            generation.shift,
        ).repeat(2)
        x_t, target = path(features, draws["pair-noise"].repeat(2, 1, 1, 1), t)
        # Other weights first: to exchange them breaks the graph of a velocity that is to learn.
        with self._reference.used():
            before = matching_log_prob(self._velocity(batch, x_t, t), target)
        now = matching_log_prob(self._velocity(batch, x_t, t), target)
        losses = preference_loss(*now.chunk(2), *before.chunk(2), self.beta)
        chosen, rejected = (now.detach() - before).chunk(2)
        return losses.mean(), {
            "accuracy": (chosen > rejected).float().mean(),
            "chosen": chosen.mean(),
            "rejected": rejected.mean(),
        }

    def _velocity(self, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocities [2B,C,h,w] of both images of each prompt."""
        generation, _ = self._neighbours
        condition = generation.condition_of(batch).hidden_states.repeat(2, 1, 1)
        return bind_condition(generation.dit, condition)(x_t, t)

    def state(self, keep: bool = True) -> dict[str, Any]:
        """The weights before, for a checkpoint; all ranks must call it."""
        if self._reference is None:
            return dict(self._state)
        return {"reference": self._reference.state_dict(keep)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the result of `state`, for when training goes on."""
        self._state = state
