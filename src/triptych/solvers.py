"""How a diffusion is integrated: diffusers' schedulers by name, each set to a number of steps.

"euler" is as published, first order. The others are of second order, and need fewer steps: "heun"
(Karras et al. 2022, arXiv 2206.00364), which calls the model twice a step, "dpm++" (Lu et al. 2022,
arXiv 2211.01095) and "unipc" (Zhao et al. 2023, arXiv 2302.04867), which call it once and remember
the step before.
"""

from __future__ import annotations

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

from triptych.utils.errors import UserError
from triptych.utils.limits import STEPS

MULTISTEP = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
EPSILON = 1e-6  # the multistep ones take the logarithm of 1 - sigma; diffusers' own value
SAMPLERS = ("euler", "heun", *MULTISTEP)


def require_sampler(name: str) -> None:
    """Check the name of a sampler.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler {name!r}; choose from {', '.join(SAMPLERS)}.")


def require_steps(steps: int) -> None:
    """Check the number of steps of a sampler.

    Raises:
        UserError: it is out of range.
    """
    if steps not in STEPS:
        raise UserError(
            f"sampling takes at least 1 step, not {str(steps)[:40]}, and at most {STEPS.most:,}; "
            "set --steps, or `steps` of the generation panel or the decoder."
        )


def model_calls(sampler: str, steps: int) -> int:
    """How often `steps` steps call the model; the last one of Heun is of first order."""
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
    device of the samples, where its numbers become arguments of kernels: nobody waits for them.

    Raises:
        UserError: there is no such sampler, or there are no steps.
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

    On the CPU, as a `flow_solver`.

    Raises:
        UserError: there is no such sampler, or there are no steps.
    """
    require_sampler(name)
    require_steps(steps)
    kinds = {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler, **MULTISTEP}
    solver = kinds[name](**options)
    solver.set_timesteps(steps)
    solver.set_begin_index(0)
    return solver
