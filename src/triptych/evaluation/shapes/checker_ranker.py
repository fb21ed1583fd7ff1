"""The exact checker of the shapes world as a ranker: the upper bound of every other one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.evaluation.shapes.common import world_arrays
from triptych.interfaces import Ranker
from triptych.shapes_world.captions import Request, parse
from triptych.shapes_world.checker import check
from triptych.utils.errors import UserError


class CheckerRanker(Ranker):
    """1 for an image that shows exactly what its caption requires, else 0."""

    name = "shapes_checker"

    def check(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            _request(prompt)

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pairs = zip(world_arrays([images]), prompts, strict=True)
        return torch.tensor([float(check(image, _request(prompt))) for image, prompt in pairs])


def _request(prompt: str) -> Request:
    request = parse(prompt)
    if request is None:
        raise UserError(
            f"the checker cannot rank images of {prompt[:60]!r}, which is no caption of the shapes "
            "world; leave the ranker out."
        )
    return request
