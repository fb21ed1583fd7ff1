"""Rankers: scores of images by which the best of several candidates is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.utils.errors import UserError

ScoreFunction = Callable[[Tensor, Sequence[str]], Tensor]
"""`Ranker.scores` as a function."""


class Ranker(ABC):
    """Scores images against their prompts, a batch at a time."""

    name: str = "ranker"
    """Name in the metadata of images, and in errors."""

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that it cannot rank, before any image is generated.

        Raises:
            UserError: there is such a prompt.
        """
        return None

    @abstractmethod
    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images uint8 [B,3,H,W] for as many prompts; the highest is the best."""


class _FunctionRanker(Ranker):
    def __init__(self, function: ScoreFunction, name: str) -> None:
        self.function, self.name = function, name

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)


def as_ranker(given: Any) -> Ranker:
    """A `Ranker` of an object with a method `scores`, or of a function like that method.

    Raises:
        UserError: it is neither.
    """
    if isinstance(given, Ranker):
        return given
    function = getattr(given, "scores", given)
    if not callable(function) or isinstance(given, type):
        raise UserError(
            f"the ranker {str(given)[:40]!r} has no method scores(images, prompts); give a Ranker, "
            "or a function of images uint8 [B,3,H,W] and prompts that returns scores [B]."
        )
    name = getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__)
    return _FunctionRanker(function, str(name))


def ranked(ranker: Ranker, images: Tensor, prompts: Sequence[str]) -> list[float]:
    """Scores of a ranker as numbers, checked.

    Raises:
        UserError: they are not one number for each image.
    """
    scores = torch.as_tensor(ranker.scores(images, prompts))
    if scores.shape != (len(images),):
        raise UserError(
            f"the ranker {ranker.name!r} returned scores of shape {list(scores.shape)} for "
            f"{len(images)} images; return one number for each."
        )
    if scores.is_floating_point() and scores.isnan().any():
        raise UserError(f"the ranker {ranker.name!r} returned NaN; return a number for each image.")
    return scores.float().tolist()
