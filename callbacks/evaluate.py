"""Scores of a model before, during and after a fit."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from triptych.callbacks._evaluation_mode import evaluation_mode
from triptych.callbacks._optional import OptionalCallback, missing_parts
from triptych.callbacks.ema import EMA
from triptych.checkpoints.run_folder import of_trainer
from triptych.interfaces import Evaluator
from triptych.utils.atomic_write import write_text
from triptych.utils.errors import UserError

SCORES = "scores.json"


class Evaluate(OptionalCallback):
    """Runs an evaluator, logs its scores as NAME/SCORE, and prints scores before and after.

    The average of the callback `EMA` is scored where a run has one. Disabled in a stage that does
    not build the parts that the evaluator needs.

    A fit ends with scores.json, in its folder and, for the latest run, one folder above: "before"
    and "after", the means of the first evaluator, "run", "step", and all scores by evaluator.

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
        run = of_trainer(trainer)  # collective
        if trainer.is_global_zero:
            print(table(self.name, self.before, self.after))
            all_of_them = [each for each in trainer.callbacks if isinstance(each, Evaluate)]
            if run is not None and self is all_of_them[-1]:
                write_scores(run, trainer.global_step, all_of_them)

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]

    def _score(self, trainer: Trainer, module: LightningModule) -> None:
        with ExitStack() as stack:
            for callback in trainer.callbacks:
                if isinstance(callback, EMA):
                    stack.enter_context(callback.swapped(module))
            stack.enter_context(evaluation_mode(trainer, module))
            self.after = self.evaluator(module)
        self._scored = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"{self.name}/{key}": value for key, value in self.after.items()},
                trainer.global_step,
            )
            logger.save()


def write_scores(run: Path, step: int, evaluations: list[Evaluate]) -> None:
    """Write scores.json to the folder of a run, and to the one above it."""
    first = evaluations[0]
    scores = {
        "run": run.name,
        "step": step,
        "before": first.before.get("mean"),
        "after": first.after.get("mean"),
        "scores": {each.name: {"before": each.before, "after": each.after} for each in evaluations},
    }
    for folder in (run, run.parent):
        write_text(folder / SCORES, json.dumps(scores, indent=1) + "\n")


def table(name: str, before: dict[str, float], after: dict[str, float]) -> str:
    """Table of the scores before and after, one per line."""
    wide = max(len(name), *(len(key) for key in after))
    rows = [f"{key:{wide}}  {before[key]:6.3f}  {value:6.3f}" for key, value in after.items()]
    return "\n".join([f"{name:{wide}}  before   after", *rows])
