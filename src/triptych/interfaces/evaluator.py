"""The base class of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Evaluator(ABC):
    """Scores a model: used by the command line, and by a callback during training."""

    parts: tuple[str, ...] = ()
    """Names of the panels and parts that the model must have built, see `UnifiedModule.lacks`.

    A run loads no part that only others need: "language_model" without "vision_tower" and "lm_head"
    is enough to generate images of captions; "understanding" is all three.
    """

    @abstractmethod
    def __call__(self, model: Any) -> dict[str, float]:
        """Scores of a built UnifiedModule in evaluation mode, by name; higher is better."""
