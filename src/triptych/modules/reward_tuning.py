"""Learning from rewards: the generator draws images, has them scored, and follows the good ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from triptych.interfaces import (
    REWARDED_GENERATION,
    Batch,
    Condition,
    FlowSamplerConfig,
    Reward,
    as_reward,
    bind_condition,
    rewarded,
)
from triptych.modules.base import BaseModule, Metrics
from triptych.modules.generation import GenerationModule
from triptych.modules.policy_algorithms import DiffusionNFT, Drawn, DrawSettings, PolicyAlgorithm
from triptych.policy_loss import advantages, standardized, velocity_penalty
from triptych.sampler import noise_from_seeds, sample_flow
from triptych.training.weight_copy import WeightCopy
from triptych.utils.errors import UserError
from triptych.utils.rng import mix

DEFAULT_SAMPLING = FlowSamplerConfig(num_inference_steps=10, guidance_scale=1.0, name="dpm++")


@dataclass(frozen=True)
class OldPolicyDecay:
    """Decay of the policy that draws, which follows the one that learns.

    Before iteration n it becomes decay times itself plus (1 - decay) times that one, with a decay
    of min(rate n, most), as in DiffusionNFT: nearly on policy at first, then slower.
    """

    rate: float = 0.01
    most: float = 0.5

    def __call__(self, iteration: int) -> float:
        return min(self.rate * iteration, self.most)


DEFAULT_DECAY = OldPolicyDecay()


class RewardTuningModule(BaseModule):
    """Learns from `group_size` images of each prompt, drawn by an average of its own past.

    A batch of prompts comes several steps in a row (`data.steps_per_batch`). In the first of them
    images are drawn and scored; every step then learns from all of them, each at a noise level of
    its own. All draws are pure functions of seed, sample number, image and repetition, so that a
    resumed run draws the same images again.

    Args:
        group_size: number of images of a prompt, whose scores are compared with each other.
        algorithm: how scores become a loss.
        sampling: sampler that draws, without guidance; of no effect where the algorithm draws.
        old_policy: decay of the weights that draw.
        reference_weight: weight of the squared distance between the velocities of the policy and
            of the model before; 0 keeps no copy of it.
        draw_batch_size: maximum number of images drawn and scored at a time.
        training: arguments of `BaseModule`.
    """

    batch_objective = REWARDED_GENERATION

    def __init__(
        self,
        algorithm: PolicyAlgorithm | None = None,
        *,
        group_size: int = 8,
        sampling: FlowSamplerConfig = DEFAULT_SAMPLING,
        old_policy: OldPolicyDecay = DEFAULT_DECAY,
        reference_weight: float = 1e-4,
        draw_batch_size: int = 64,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if group_size < 2:
            raise UserError(
                f"reward_tuning.group_size is {group_size}; give 2 images of a prompt or more: an "
                "image is good or bad beside others of its prompt."
            )
        if sampling.guidance_scale != 1:
            raise UserError(
                f"reward_tuning.sampling.guidance_scale is {sampling.guidance_scale}; give 1: the "
                "policy is the velocity without guidance, and learns not to need it."
            )
        if reference_weight < 0 or draw_batch_size < 1:
            raise UserError(
                f"reward_tuning has reference_weight {reference_weight} and draw_batch_size "
                f"{draw_batch_size}; give 0 or more, and 1 or more."
            )
        sampling.check()
        self.algorithm = algorithm or DiffusionNFT()
        self.group_size, self.sampling, self.old_policy = group_size, sampling, old_policy
        self.reference_weight, self.draw_batch_size = reference_weight, draw_batch_size
        self.iteration = -1
        """Number of the set of images that the policy learns from."""
        self._step_of_iteration: int | None = None
        self._drawn: dict[int, Drawn] = {}  # first sample number of a batch -> its images
        self._scored: dict[int, Metrics] = {}
        self._old: WeightCopy | None = None
        self._reference: WeightCopy | None = None
        self._state: Mapping[str, Any] = {}

    def connect(
        self, generation: GenerationModule, decode: Callable[..., Tensor], reward: Reward | None
    ) -> None:
        """Set the panel that learns, the way from features to images, and the reward.

        They are kept in a tuple: the panel has its owner, and a network as reward is no part of the
        model.
        """
        if generation.objective.loss != "flow":
            raise UserError("rewards teach a flow, and the generation objective is a regression.")
        self._neighbours = generation, decode, None if reward is None else as_reward(reward)

    def build_own(self) -> None:
        """Nothing is built.

        Raises:
            UserError: there is no reward, which is said before weights are read.
        """
        if self._neighbours[2] is None:
            raise UserError(
                "reward tuning has no reward; name one, --model.reward=my_package.MyReward."
            )

    # Training -----------------------------------------------------------------------------------

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Prompts [P] -> images [P*K] -> scores; loss of the policy at one noise level of each."""
        if not self.training:
            return self._evaluate(batch)
        generation, *_ = self._neighbours
        if self._old is None:
            self._begin(generation)
        drawn = self._drawn_for(batch)
        settings = self._settings(batch)
        x_t, t = self.algorithm.point(drawn, settings)
        # Other weights first: to exchange them breaks the graph of a velocity that is to learn.
        old_velocity = self._velocity_of(self._old, batch, x_t, t)
        reference = None
        if self._reference is not None:
            reference = self._velocity_of(self._reference, batch, x_t, t)
        velocity = self._velocity(batch)(x_t, t)
        losses, metrics = self.algorithm.loss(velocity, old_velocity, drawn, settings)
        loss = losses.mean()
        if reference is not None:
            distance = velocity_penalty(velocity, reference).mean()
            loss = loss + self.reference_weight * distance
            metrics["reference_distance"] = distance.detach()
        metrics["velocity_norm"] = velocity.detach().float().square().mean().sqrt()
        first = int(batch.sample_ids[0])
        return loss, {**metrics, **self._scored[first]}

    def _begin(self, generation: GenerationModule) -> None:
        """Take the weights that draw, and those before, from a checkpoint or from now."""
        self.iteration = self._state.get("iteration", -1)
        self._old = WeightCopy(generation, self._state.get("old"))
        if self.reference_weight:
            self._reference = WeightCopy(generation, self._state.get("reference"))
        self._state = {}

    def _drawn_for(self, batch: Batch) -> Drawn:
        """Images of a batch: drawn anew in its first step, and where a run is resumed."""
        first = int(batch.sample_ids[0])
        if batch.repetition == 0 and first not in self._drawn:
            if self._is_new_iteration():
                self.iteration += 1
                if self.iteration:
                    self._old.follow(self.old_policy(self.iteration))
                self._drawn, self._scored = {}, {}
        if first not in self._drawn:
            self._drawn[first], self._scored[first] = self._draw(batch)
        return self._drawn[first]

    def _is_new_iteration(self) -> bool:
        """Whether this is the first micro-batch of a step."""
        step = 0 if self._trainer is None else self.trainer.global_step
        is_new = step != self._step_of_iteration
        self._step_of_iteration = step
        return is_new

    def _settings(self, batch: Batch) -> DrawSettings:
        generation, *_ = self._neighbours
        return DrawSettings(self.seed, self.iteration, batch.repetition, generation.shift)

    def _velocity(self, batch: Batch):
        """Velocity of P*K rows by the prompts of a batch."""
        generation, *_ = self._neighbours
        condition = generation.condition_of(batch).repeat_interleave(self.group_size)
        return bind_condition(generation.dit, condition.hidden_states)

    def _velocity_of(self, weights: WeightCopy, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
        with weights.used():
            return self._velocity(batch)(x_t, t)

    # Images and their scores --------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, batch: Batch) -> tuple[Drawn, Metrics]:
        """Draw and score `group_size` images of each prompt, by the old policy."""
        generation, *_ = self._neighbours
        rows = [
            int(sample) * self.group_size + k
            for sample in batch.sample_ids
            for k in range(self.group_size)
        ]
        settings = self._settings(batch)
        with self._old.used(), _evaluating(generation):
            condition = generation.condition_of(batch).repeat_interleave(self.group_size)
            noise = noise_from_seeds(
                generation.feature_shape, [mix(self.seed, row) for row in rows], self.device
            )
            drawn = _joined(
                self._draw_some(
                    Condition(condition.hidden_states[some]), noise[some], rows[some], settings
                )
                for some in _chunks(len(rows), self.draw_batch_size)
            )
        parts = _of_all_ranks(self._scores(batch, drawn, self.group_size))
        scores = self._neighbours[2].combined(parts)
        mine = advantages(scores, self.algorithm.spread)[_rows_of_rank(len(batch))]
        drawn.advantages = mine.flatten().to(drawn.features.device)
        features = drawn.features.unflatten(0, (-1, self.group_size))
        return drawn, _score_metrics(scores, parts, features)

    def _draw_some(
        self, condition: Condition, noise: Tensor, rows: list[int], settings: DrawSettings
    ) -> Drawn:
        generation, *_ = self._neighbours
        if not self.algorithm.draws_by_sampler:
            velocity = generation.dit.with_cached_condition(condition.hidden_states)
            return self.algorithm.draw(velocity, noise, rows, settings)
        features = sample_flow(
            generation.dit,
            condition,
            noise,
            num_inference_steps=self.sampling.num_inference_steps,
            guidance_scale=1.0,
            sampler=self.sampling.name,
            shift=settings.shift,
        )
        return Drawn(rows, features.float(), features.new_zeros(len(rows)).float())

    def _scores(self, batch: Batch, drawn: Drawn, group_size: int) -> dict[str, Tensor]:
        """Scores float32 [P,K] of drawn images on the CPU, by the parts of the reward."""
        _, decode, reward = self._neighbours
        samples = [each for each in batch.reward_samples for _ in range(group_size)]
        found = []
        for some in _chunks(len(samples), self.draw_batch_size):
            images = decode(drawn.features[some], drawn.rows[some]).cpu()
            found.append(rewarded(reward, images, samples[some]))
        return {
            name: torch.cat([each[name] for each in found]).unflatten(0, (-1, group_size))
            for name in found[0]
        }

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Minus the mean reward of one image of each prompt, drawn without guidance."""
        generation, *_ = self._neighbours
        condition = generation.condition_of(batch)
        seeds = [mix(self.seed, int(sample)) for sample in batch.sample_ids]
        features = sample_flow(
            generation.dit,
            condition,
            noise_from_seeds(generation.feature_shape, seeds, self.device),
            num_inference_steps=self.sampling.num_inference_steps,
            guidance_scale=1.0,
            sampler=self.sampling.name,
            shift=generation.shift,
        )
        drawn = Drawn(seeds, features.float(), features.new_zeros(len(batch)).float())
        parts = {
            name: scores.mean().to(features.device)
            for name, scores in self._scores(batch, drawn, 1).items()
        }
        score = torch.stack([*parts.values()]).mean()
        return -score, {"reward": score, **_several(parts)}

    # Checkpoints --------------------------------------------------------------------------------

    def state(self, keep: bool = True) -> dict[str, Any]:
        """State of a run beside its weights, for a checkpoint; all ranks must call it."""
        if self._old is None:
            return dict(self._state)
        state: dict[str, Any] = {"iteration": self.iteration, "old": self._old.state_dict(keep)}
        if self._reference is not None:
            state["reference"] = self._reference.state_dict(keep)
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the result of `state`, for when training goes on."""
        self._state = state


def _chunks(number: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, number)) for at in range(0, number, size)]


def _joined(parts: Iterable[Drawn]) -> Drawn:
    parts = list(parts)
    first = parts[0]
    joined = Drawn(
        [row for part in parts for row in part.rows],
        torch.cat([part.features for part in parts]),
        torch.cat([part.advantages for part in parts]),
        stochastic=first.stochastic,
    )
    if first.path is not None:
        joined.path = torch.cat([part.path for part in parts])
    return joined


@contextmanager
def _evaluating(generation: GenerationModule) -> Iterator[None]:
    """Evaluation mode, as in inference; what trains goes on in training mode afterwards."""
    generation.eval()
    try:
        yield
    finally:
        generation.train()


def _of_all_ranks(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores [P,K] by part of the prompts of all ranks, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return parts
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, parts)
    return {name: torch.cat([each[name] for each in gathered]) for name in parts}


def _rows_of_rank(number: int) -> slice:
    """Rows of this rank's `number` prompts among those of all."""
    several = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if several else 0
    return slice(rank * number, (rank + 1) * number)


def _several(parts: Mapping[str, Tensor]) -> Metrics:
    """Values of the parts of a reward by their names in logs; none of a reward without parts."""
    return {f"reward/{name}": value for name, value in parts.items()} if len(parts) > 1 else {}


def _score_metrics(scores: Tensor, parts: Mapping[str, Tensor], features: Tensor) -> Metrics:
    """Logged values of scores [P,K] of all ranks and of features [P,K,C,h,w] of this one.

    diversity is the mean distance between two images of a prompt, over the root of their size.
    disagreement is the mean deviation of an ensemble's members, each in units of its own deviation:
    where it rises while the reward does, members are being deceived.
    """
    flat = features.flatten(2)
    pairs = torch.cdist(flat, flat).sum((1, 2)) / (flat.shape[1] * (flat.shape[1] - 1))
    found = {
        "reward": scores.mean(),
        "reward_std": scores.std(1, correction=0).mean(),
        "equal_groups": (scores.std(1, correction=0) == 0).float().mean(),
        "diversity": pairs.mean() / flat.shape[2] ** 0.5,
        **_several({name: values.mean() for name, values in parts.items()}),
    }
    if len(parts) > 1:
        found["disagreement"] = standardized(parts).std(0, correction=0).mean()
    return {name: value.to(features.device) for name, value in found.items()}
