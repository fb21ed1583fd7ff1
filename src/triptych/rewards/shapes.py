"""The exact checker of the shapes world as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.evaluation.shapes.common import world_arrays
from triptych.interfaces import Reward, RewardSample
from triptych.shapes_world.captions import Request, parse
from triptych.shapes_world.checker import check
from triptych.utils.errors import UserError


class ShapesChecker(Reward):
    """1 for an image that shows exactly what its caption requires, else 0.

    As a ranker of candidates it is the upper bound of every other one.
    """

    name = "shapes_checker"

    def check(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            _request(prompt)

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        pairs = zip(world_arrays([images]), samples, strict=True)
        return torch.tensor([float(check(image, _request(each.prompt))) for image, each in pairs])


def _request(prompt: str) -> Request:
    request = parse(prompt)
    if request is None:
        raise UserError(
            f"the checker cannot score images of {prompt[:60]!r}, which is no caption of the "
            "shapes world; take another reward or ranker."
        )
    return request
