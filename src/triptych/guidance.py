"""Classifier-free guidance of a velocity, by the prompt and by the source image of an edit.

    v = v(0) + image_guidance_scale (v(image) - v(0)) + guidance_scale (v(image, text) - v(image))

v(0) knows nothing, v(image) the source, v(image, text) all (Brooks et al. 2022, arXiv 2211.09800).
Without a source v(image) is v(0): v = v(0) + guidance_scale (v(text) - v(0)), Ho & Salimans 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.interfaces import Source, Velocity


def guided(
    bind: Callable[..., Velocity],
    condition: Tensor,
    *,
    guidance_scale: float,
    image_guidance_scale: float = 1.0,
    negative_condition: Tensor | None = None,
    source: Source | None = None,
    rescale: float = 0.0,
) -> Velocity:
    """Guided velocity as a function of x_t [B,C,h,w] and t [B].

    Velocities that the scales cancel are not computed: a call has B rows where both scales are 1,
    3B where there is a source and they differ from 1 and from each other, else 2B.

    Args:
        bind: `VelocityModel.with_cached_condition`.
        condition: condition [B,N,D].
        negative_condition: condition [1,N,D] of v(0) and v(image); zeros by default.
        source: source images of the rows; None has no image scale.
        rescale: strength of `rescaled`, towards the velocity that knows all.
    """
    if source is None:
        image_guidance_scale = 1.0
    if guidance_scale == image_guidance_scale == 1.0:
        return _bound(bind, condition, None, source)
    if negative_condition is None:
        negative_condition = torch.zeros_like(condition[:1])
    if image_guidance_scale == 1.0:  # v(0) cancels; without a source it is v(image)
        groups = [source, source]
    elif image_guidance_scale == guidance_scale:  # v(image) cancels
        groups = [source.absent(), source]
    else:
        groups = [source.absent(), source, source]
    rows = None if source is None else Source.cat(groups)
    velocities = _bound(bind, condition, negative_condition, rows)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        number = len(groups)
        first, *middle, last = velocities(x_t.repeat(number, 1, 1, 1), t.repeat(number)).chunk(
            number
        )
        if middle:
            (image,) = middle
            found = first + image_guidance_scale * (image - first) + guidance_scale * (last - image)
        else:
            found = first + guidance_scale * (last - first)
        return rescaled(found, last, x_t, t, rescale) if rescale else found

    return velocity


def rescaled(
    velocity: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor, strength: float
) -> Tensor:
    """Guided velocity float32 whose estimate of the clean features has another deviation.

    Lin et al. 2023 (arXiv 2305.08891, section 3.4) with the estimate in place of the network's
    output, which for a flow is mostly noise. With s(.) the standard deviation over all values
    [C,h,w] of an image, and x = x_t - t v the estimates of the guided and of the conditional
    velocity, v(image, text):

        x' = strength * x_guided * s(x_conditional) / s(x_guided) + (1 - strength) * x_guided
        v' = (x_t - x') / t

    At t = 0 both estimates are x_t, and the velocity stays.

    Args:
        velocity, conditional, x_t: all [B,C,h,w].
        t: times [B], as the model receives them.
        strength: phi of the paper, from 0 (the guided velocity) to 1.
    """
    velocity, x_t, t = velocity.float(), x_t.float(), t.float()[:, None, None, None]
    clean, target = x_t - t * velocity, x_t - t * conditional.float()
    deviations = _std(target) / _std(clean)
    # (x_guided - x') / t
    change = strength * (1 - deviations) * clean / t
    return velocity + torch.where(t > 0, change, 0.0)


def _std(features: Tensor) -> Tensor:
    """Standard deviation [B,1,1,1] over the values of each image."""
    return features.std((1, 2, 3), correction=0, keepdim=True)


def _bound(
    bind: Callable[..., Velocity],
    condition: Tensor,
    negative_condition: Tensor | None,
    source: Source | None,
) -> Velocity:
    """`bind`, which need not know of sources where there is none."""
    options = {} if source is None else {"source": source}
    return bind(condition, negative_condition, **options)
