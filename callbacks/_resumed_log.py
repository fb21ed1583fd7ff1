"""Complete log of a resumed run: every step once, from the first on.

Lightning gives a resumed run its own metrics.csv, which begins in the middle; and it logs a step
after the checkpoint of that step is saved, so that a kill in between loses the row.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import CSVLogger

from triptych.utils.atomic_write import replacing

Row = dict[str, Any]

METRICS = "metrics.csv"


def logs_step(trainer: Trainer, step: int, every: int = 1) -> bool:
    """Whether a training step, counted from 1, is one in `every` of the logged ones."""
    interval = every * trainer.log_every_n_steps
    return interval > 0 and step % interval == 0


def pending_row(trainer: Trainer) -> Row:
    """Row that Lightning will log for the training step that just ended, or empty."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    row = convert_tensors_to_scalars(connector.metrics["log"])
    return {**row, "epoch": trainer.current_epoch} if row else {}


def continue_log(trainer: Trainer, checkpoint: Path, pending: Row, validation_due: bool) -> None:
    """Begin this run's logs with the steps before the checkpoint that it resumes from.

    Args:
        trainer: trainer of the resumed run.
        checkpoint: path of the checkpoint; the log of its run is in the folder above.
        pending: row of the checkpoint's step, if it was saved before that was logged.
        validation_due: whether the validation of the checkpoint's step is run again.
    """
    if not trainer.is_global_zero:
        return
    step = trainer.global_step - 1  # rows are counted from 0
    before = rows_before(checkpoint, step, pending)
    if validation_due:
        before = [
            row
            for row in before
            if int(row["step"]) < step or not any(name.startswith("val/") for name in row)
        ]
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.experiment.metrics.extend(before)
        if pending:
            logger.log_metrics(pending, step)
        logger.save()


def complete_log(trainer: Trainer, checkpoint: Path, pending: Row) -> None:
    """Add the row that the log of a checkpoint's run lacks, if the run ended before logging it.

    Args:
        trainer: trainer of the run.
        checkpoint: path of the checkpoint; the log of its run is in the folder above.
        pending: row of the checkpoint's step, if it was saved before that was logged.
    """
    log = checkpoint.parent.parent / METRICS
    if not trainer.is_global_zero or not pending:
        return
    step = trainer.global_step - 1
    after = [row for row in rows_of(log.parent) if int(row["step"]) >= step]
    if any(pending.keys() <= row.keys() for row in after):
        return
    rows = [*rows_before(checkpoint, step, pending), {**pending, "step": step}]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, sorted(set().union(*rows)))  # as Lightning writes it
    writer.writeheader()
    writer.writerows(rows)
    with replacing(log) as file:
        file.write(table.getvalue().encode())


def rows_before(checkpoint: Path, step: int, pending: Row) -> list[Row]:
    """Rows of a checkpoint's run up to `step`, without the one that `pending` replaces."""
    before = [row for row in rows_of(checkpoint.parent.parent) if int(row["step"]) <= step]
    if not pending:
        return before
    return [row for row in before if int(row["step"]) < step or not pending.keys() <= row.keys()]


def rows_of(folder: Path) -> list[Row]:
    """Read the rows of a metrics.csv as texts; an incomplete row is skipped."""
    try:
        text = (folder / METRICS).read_bytes().decode()
    except FileNotFoundError:
        return []
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [{name: value for name, value in row.items() if value} for row in csv.DictReader(whole)]
