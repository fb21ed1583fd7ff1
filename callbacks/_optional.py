"""Callbacks that step aside where a run cannot serve them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class OptionalCallback(Callback):
    """Callback that is disabled, with one message, if data, stage or model lack its requirements.

    A subclass defines the requirements; everything else in it may then rely on them.
    """

    serves: tuple[str, ...] = ("fit",)
    """The commands in which it does something."""

    @abstractmethod
    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Find out, once the data is set up, what this run lacks: a clause; None if nothing.

        All ranks must find the same.
        """

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage not in self.serves or (reason := self.lacks(trainer, module)) is None:
            return
        # another list: Lightning is on its way through this one
        trainer.callbacks = [each for each in trainer.callbacks if each is not self]
        if trainer.is_global_zero:
            log.warning("%s steps aside: %s.", type(self).__name__, reason)


def missing_parts(module: Any, parts: tuple[str, ...]) -> str | None:
    """Why the model of this stage cannot compute with some parts; see `UnifiedModule.lacks`."""
    if not parts:
        return None
    if not hasattr(module, "lacks"):
        return f"{type(module).__name__} is not a whole model"
    return module.lacks(*parts)
