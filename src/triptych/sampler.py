"""The sampler: integrates the learned velocity from noise (t = 1) to features (t = 0).

The integrator is a diffusers scheduler; guidance is classifier-free (Ho & Salimans 2022) with the
null condition of training, which is zeros unless another is given. Seeds make noise, one per
picture, so that a picture does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from triptych.contracts import Condition, UserError, VelocityModel
from triptych.randomness import normal


def times(steps: int) -> np.ndarray:
    """The published grid: `steps` values from 1 down to 1/steps; the scheduler appends 0.

    Raises:
        UserError: there are no steps.
    """
    require_steps(steps)
    return np.linspace(1.0, 1.0 / steps, steps)


def require_steps(steps: int) -> None:
    """What every sampler asks of its number of steps: there is at least one.

    Raises:
        UserError: there are none.
    """
    if steps < 1:
        raise UserError(
            f"sampling takes at least 1 step, not {steps}; set --steps, or `steps` of the "
            "generation panel or the decoder, to 1 or more."
        )


def noise_from_seeds(shape: tuple[int, ...], seeds: Sequence[int], device=None) -> Tensor:
    """Starting noise [len(seeds), *shape]; row i depends on seeds[i] alone."""
    return normal(shape, 0, "sampler", seeds, device)


@torch.no_grad()
def sample_flow(
    model: VelocityModel | Callable[[Tensor, Tensor, Tensor], Tensor],
    condition: Condition,
    noise: Tensor,
    steps: int,
    guidance: float,
    on_step: Callable[[int, Tensor], None] | None = None,
    shift: float = 1.0,
    integer_times: bool = False,
    null: Tensor | None = None,
) -> Tensor:
    """Features [B,C,h,w] for `condition` [B,N,D], starting at `noise` [B,C,h,w].

    The grid of times is shifted as in training, see `loss.shift_time`; 1 is the published grid.

    guidance 1 needs one model call a step, any other value one call on a doubled batch:
    v = v_null + guidance * (v_condition - v_null). `on_step(i, x)` is called after every step.
    `null` [1,N,D] takes the place of zeros as the null condition.

    `integer_times` tells the model 966 for 966.67 thousandths, while x moves by the exact times:
    published sampling does, so published weights were scored so. Off by default, since training
    tells exact times.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=times(steps), device=noise.device)
    states = condition.states
    guided = guidance != 1.0
    if guided:
        nulls = torch.zeros_like(states) if null is None else null.expand_as(states)
        states = torch.cat([nulls, states])
    x = noise
    for index, timestep in enumerate(scheduler.timesteps):
        # float64: a thousand times t is then the integer again, not its neighbour in float32
        told = timestep.trunc().double() if integer_times else timestep
        t = (told / scheduler.config.num_train_timesteps).expand(len(x))
        if guided:
            unguided, conditional = model(x.repeat(2, 1, 1, 1), t.repeat(2), states).chunk(2)
            velocity = unguided + guidance * (conditional - unguided)
        else:
            velocity = model(x, t, states)
        x = scheduler.step(velocity.float(), timestep, x, return_dict=False)[0]
        if on_step is not None:
            on_step(index, x)
    return x


@torch.no_grad()
def sample_regression(model: VelocityModel, condition: Condition, shape: tuple) -> Tensor:
    """Features [B,C,h,w] of a model trained with the MSE objective: one pass, no noise."""
    states = condition.states
    start = states.new_zeros((len(states), *shape), dtype=torch.float32)
    return model(start, start.new_ones(len(states)), states).float()
