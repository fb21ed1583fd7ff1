"""Scores of a model before, during and after a fit."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer

from triptych.callbacks._evaluation_mode import evaluation_mode
from triptych.callbacks._optional import OptionalCallback, missing_parts
from triptych.interfaces import Evaluator
from triptych.utils.errors import UserError


class Evaluate(OptionalCallback):
    """Runs an evaluator, logs its scores as NAME/SCORE, and prints scores before and after.

    Disabled in a stage that does not build the parts that the evaluator needs.

    Args:
        evaluator: evaluator to run, for example triptych.evaluation.ShapeEval.
        every_n_steps: number of steps between scores; null scores only before and after training.
        name: prefix of the scores in the logs.
    """

    def __init__(
        self, evaluator: Evaluator, every_n_steps: int | None = None, name: str = "shape_eval"
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(
                f"Evaluate: every_n_steps must be 1 or more, or null, not {every_n_steps}."
            )
        self.evaluator, self.every_n_steps, self.name = evaluator, every_n_steps, name
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None
        self._scored = -1  # step of `after`

    @property
    def needed_parts(self) -> tuple[str, ...]:
        return self.evaluator.parts

    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        return missing_parts(module, self.evaluator.parts)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.before is None:  # else loaded from the checkpoint of a resumed run
            self._score(trainer, module)
            self.before = self.after

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._scored:
            self._score(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._scored:
            self._score(trainer, module)
        if trainer.is_global_zero:
            print(table(self.name, self.before, self.after))

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]

    def _score(self, trainer: Trainer, module: LightningModule) -> None:
        with evaluation_mode(trainer, module):
            self.after = self.evaluator(module)
        self._scored = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"{self.name}/{key}": value for key, value in self.after.items()},
                trainer.global_step,
            )
            logger.save()


def table(name: str, before: dict[str, float], after: dict[str, float]) -> str:
    """Table of the scores before and after, one per line."""
    wide = max(len(name), *(len(key) for key in after))
    rows = [f"{key:{wide}}  {before[key]:6.3f}  {value:6.3f}" for key, value in after.items()]
    return "\n".join([f"{name:{wide}}  before   after", *rows])
