"""Settings of samplers: of text tokens, and of image features and latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from triptych.utils.limits import INTERVAL, require_sampler, require_steps


@dataclass
class Sampling:
    """Token sampling parameters. The default is greedy decoding."""

    temperature: float = 0.0
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float = 1.0
    """Drawn from the likeliest tokens that together have this probability."""
    seeds: Sequence[int] = ()
    """Random seeds, one for each row, when tokens are sampled: a row depends only on its own."""


Config = TypeVar("Config", bound="SamplerConfig")


@dataclass(frozen=True)
class SamplerConfig:
    """Default settings of a diffusion sampler; a call may name others."""

    num_inference_steps: int = 30
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance; 1 is none."""
    name: str = "euler"
    """Scheduler, one of `sampler.SAMPLERS`."""

    def check(self) -> None:
        """Check the values.

        Raises:
            UserError: the number of steps is out of range, or the sampler is unknown.
        """
        require_steps(self.num_inference_steps)
        require_sampler(self.name)

    def updated(self: Config, **values: Any) -> Config:
        """A copy with those of `values` that are not None."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})


@dataclass(frozen=True)
class FlowSamplerConfig(SamplerConfig):
    """Default settings of the sampler of a flow."""

    image_guidance_scale: float = 1.5
    """Scale of guidance by the source image of an edit, see `guidance.guided`; 1 is none. Of no
    effect without a source, or where the velocity model takes none."""
    guidance_interval: tuple[float, float] | None = None
    """Times, of which 1 is noise, between which guidance works; null is always."""
    integer_timesteps: bool = False
    """Round the timesteps that the model receives down, as published; see `sampler.sample_flow`."""

    def check(self) -> None:
        """Check the values.

        Raises:
            UserError: a value is out of range, or the sampler is unknown.
        """
        super().check()
        if self.guidance_interval is not None:
            INTERVAL.require(self.guidance_interval, "sampling.guidance_interval")
