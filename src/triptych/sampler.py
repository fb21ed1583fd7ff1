"""Sampling: integrates the learned velocity from noise (t = 1) to features (t = 0).

Schedulers are those of diffusers, by name. "euler" is as published, first order. The others are of
second order and need fewer steps: "heun" (Karras et al. 2022, arXiv 2206.00364), which calls the
model twice a step, "dpm++" (Lu et al. 2022, arXiv 2211.01095) and "unipc" (Zhao et al. 2023, arXiv
2302.04867), which call it once and remember the step before.

Guidance is classifier-free, away from the null condition of training, which is zeros, unless a
negative one is given; see `guidance`. Seeds make noise, one per image, so that an image depends on
its neighbours in the batch by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from triptych.guidance import guided
from triptych.interfaces import Condition, Source, VelocityModel, bind_condition
from triptych.utils.limits import INTERVAL, require_sampler, require_steps
from triptych.utils.limits import SAMPLERS as SAMPLERS
from triptych.utils.rng import normal

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each model call as (index from 0, x after it, estimate of the clean features
x_t - t v, the image as it looks at that moment)."""


def noise_from_seeds(shape: tuple[int, ...], seeds: Sequence[int], device=None) -> Tensor:
    """Starting noise [len(seeds), *shape]; row i depends only on seeds[i]."""
    return normal(shape, 0, "sampler", seeds, device)


@torch.no_grad()
def sample_flow(
    model: VelocityModel | Callable[..., Tensor],
    condition: Condition,
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    sampler: str = "euler",
    integer_timesteps: bool = False,
    shift: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    negative_condition: Tensor | None = None,
    source: Source | None = None,
    image_guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Features [B,C,h,w] for `condition` [B,N,D], starting at `noise` [B,C,h,w].

    Args:
        guidance_scale: scale in v = v_negative + guidance_scale * (v_condition - v_negative). 1
            needs one model call a step, any other value one call on a doubled batch.
        sampler: one of `SAMPLERS`; `model_calls` gives its number of model calls.
        integer_timesteps: whether the model receives 966 for 966.67 thousandths, while x moves by
            the exact times. Published sampling does, so published weights were scored so. Off by
            default, since training passes exact times.
        shift: shift of the grid of times, as in training, see `loss.shift_time`; 1 is the
            published grid.
        guidance_interval: (low, high) in t that keeps guidance to low <= t <= high (Kynkaanniemi
            et al. 2024, arXiv 2404.07724); outside of it the model is called on the batch itself.
        negative_condition: condition [1,N,D] that guidance leads away from; zeros by default.
        source: source images of edits, for a model that takes them.
        image_guidance_scale: scale of guidance by the source; a value other than 1 and
            `guidance_scale` needs one call a step on a tripled batch, see `guidance.guided`.
        guidance_rescale: how far the deviation of the guided estimate of the clean features is
            brought to that of the conditional one, from 0 to 1; see `guidance.rescaled`.
        on_step: callback after every model call.

    Raises:
        UserError: the sampler is unknown, there are no steps, or the interval is invalid.
    """
    low, high = (0.0, 1.0) if guidance_interval is None else guidance_interval
    INTERVAL.require((low, high), "guidance_interval")
    solver = flow_solver(sampler, num_inference_steps, shift)
    hidden_states = condition.hidden_states
    cached = isinstance(model, VelocityModel)
    bind = model.with_cached_condition if cached else partial(bind_condition, model)
    plain = guided(bind, hidden_states, guidance_scale=1.0, source=source)
    full = guided(
        bind,
        hidden_states,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        negative_condition=negative_condition,
        source=source,
        rescale=guidance_rescale,
    )
    x = noise
    # float64: a thousand times t is then the integer again, not its neighbour in float32
    timesteps = solver.timesteps.trunc().double() if integer_timesteps else solver.timesteps
    times = (timesteps / 1000).to(x.device, non_blocking=True)
    levels = (solver.timesteps / 1000).tolist()
    for index, (timestep, level) in enumerate(zip(solver.timesteps, levels, strict=True)):
        t = times[index].expand(len(x))
        velocity = (full if low <= level <= high else plain)(x, t)
        velocity, before = velocity.float(), x
        x = solver.step(velocity, timestep, x, return_dict=False)[0]
        if on_step is not None:
            on_step(index, x, before - level * velocity)
    return x


@torch.no_grad()
def sample_regression(
    model: VelocityModel, condition: Condition, shape: tuple, source: Source | None = None
) -> Tensor:
    """Features [B,C,h,w] of a model trained with the MSE objective: one pass, no noise."""
    hidden_states = condition.hidden_states
    start = hidden_states.new_zeros((len(hidden_states), *shape), dtype=torch.float32)
    velocity = bind_condition(model, hidden_states, source=source)
    return velocity(start, start.new_ones(len(hidden_states))).float()


MULTISTEP = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


EPSILON = 1e-6  # the multistep ones take the logarithm of 1 - sigma; diffusers' own value


def model_calls(sampler: str, steps: int) -> int:
    """Number of model calls of `steps` steps; the last step of Heun is of first order."""
    return 2 * steps - 1 if sampler == "heun" else steps


def times(steps: int) -> np.ndarray:
    """The published grid of a flow: `steps` values from 1 down to 1/steps; then comes 0.

    Raises:
        UserError: there are no steps.
    """
    require_steps(steps)
    return np.linspace(1.0, 1.0 / steps, steps)


def flow_solver(name: str, steps: int, shift: float = 1.0) -> Any:
    """A scheduler for a velocity, on the published grid shifted as `loss.shift_time` does.

    Its `timesteps` are 1000 t, one for each call of the model. It stays on the CPU whatever the
    device of the samples, and its numbers become arguments of kernels: no synchronization.

    Raises:
        UserError: the sampler is unknown, or there are no steps.
    """
    require_sampler(name)
    solver = FlowMatchEulerDiscreteScheduler(shift=shift)
    solver.set_timesteps(sigmas=times(steps))
    # The grids that diffusers makes for the others begin at 0.999, are of whole thousandths, or are
    # shifted twice: all take Euler's.
    levels, sigmas = solver.timesteps, solver.sigmas
    if name == "heun":
        solver = FlowMatchHeunDiscreteScheduler()
        solver.set_timesteps(steps)
        solver.timesteps = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        solver.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    elif name in MULTISTEP:
        solver = MULTISTEP[name](prediction_type="flow_prediction", use_flow_sigmas=True)
        solver.set_timesteps(steps)
        solver.timesteps, solver.sigmas = levels, sigmas
        solver.sigmas[0] -= EPSILON
    solver.set_begin_index(0)  # else the first step looks it up, for which a GPU is waited for
    return solver


def diffusion_solver(name: str, steps: int, **options: Any) -> Any:
    """A scheduler for a network that predicts noise or "v"; `options` are those of diffusers.

    Stored on the CPU, like a `flow_solver`.

    Raises:
        UserError: the sampler is unknown, or there are no steps.
    """
    require_sampler(name)
    require_steps(steps)
    kinds = {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler, **MULTISTEP}
    solver = kinds[name](**options)
    solver.set_timesteps(steps)
    solver.set_begin_index(0)
    return solver
