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
) -> Velocity:
    """Guided velocity as a function of x_t [B,C,h,w] and t [B].

    Velocities that the scales cancel are not computed: a call has B rows where both scales are 1,
    3B where there is a source and they differ from 1 and from each other, else 2B.

    Args:
        bind: `VelocityModel.with_cached_condition`.
        condition: condition [B,N,D].
        negative_condition: condition [1,N,D] of v(0) and v(image); zeros by default.
        source: source images of the rows; None has no image scale.
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
        if not middle:
            return first + guidance_scale * (last - first)
        (image,) = middle
        return first + image_guidance_scale * (image - first) + guidance_scale * (last - image)

    return velocity


def _bound(
    bind: Callable[..., Velocity],
    condition: Tensor,
    negative_condition: Tensor | None,
    source: Source | None,
) -> Velocity:
    """`bind`, which need not know of sources where there is none."""
    options = {} if source is None else {"source": source}
    return bind(condition, negative_condition, **options)
