"""Base of callbacks that disable themselves if a run lacks their requirements."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class OptionalCallback(Callback):
    """Callback that is disabled, with one message, if data, stage or model lack its requirements.

    A subclass defines the requirements; its other methods may rely on them.
    """

    serves: tuple[str, ...] = ("fit",)
    """Commands in which the callback is active."""
    needed_parts: tuple[str, ...] = ()
    """Parts of the model that it computes with, see `UnifiedModule.lacks`: a run loads them though
    its steps do not need them. Read once data and callbacks are set up."""

    @abstractmethod
    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Return a clause about a missing requirement of this run, or None.

        Called when the data is set up. All ranks must return the same.
        """

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage not in self.serves or (reason := self.lacks(trainer, module)) is None:
            return
        # a new list: Lightning is iterating over this one
        trainer.callbacks = [each for each in trainer.callbacks if each is not self]
        if trainer.is_global_zero:
            log.warning("%s steps aside: %s.", type(self).__name__, reason)


def missing_parts(module: Any, parts: tuple[str, ...]) -> str | None:
    """Reason why the model of this stage lacks some parts, or None; see `UnifiedModule.lacks`."""
    if not parts:
        return None
    if not hasattr(module, "lacks"):
        return f"{type(module).__name__} is not a whole model"
    return module.lacks(*parts)
