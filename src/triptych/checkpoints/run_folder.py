"""Run folders: a run takes a new version_N by an exclusive mkdir and never overwrites another."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints.training_checkpoint import read_progress
from triptych.utils.atomic_write import LOCK, PARTIAL, Lock
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)

MOMENT = 2.0
"""Seconds to wait for a lock that another process holds only briefly."""

Version = int | str


class RunFolder:
    """Folder of this run under each logger's parent, and the lock on the first of them.

    Args:
        folders: folders of the run; the first one has the checkpoints.
        created: whether this process created them.
        parents: parent folders that it created too, the innermost first.
    """

    def __init__(
        self, folders: Sequence[Path], created: bool, parents: Sequence[Path] = ()
    ) -> None:
        self.folders, self.created, self.parents = list(folders), created, list(parents)
        self.lock = Lock(folders[0] / LOCK)  # held while this process is alive

    @property
    def path(self) -> Path:
        return self.folders[0]

    def remove(self) -> None:
        """Remove the folders of a refused run; those of an earlier run stay."""
        self.lock.release()
        if self.created:
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            for parent in self.parents:
                with suppress(OSError):  # another run is in it
                    parent.rmdir()


def is_first_process() -> bool:
    """Whether this process is rank 0 of the run; known before the ranks are connected."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and node == "0"


def take(parents: Sequence[Path], version: Version | None = None) -> tuple[Version, RunFolder]:
    """Create the folder of a new run, of the same version under each of `parents`.

    Args:
        parents: parent folders, one for each logger.
        version: version chosen by the user; if its folder exists, the next number is used.
    """
    if version is not None:
        if (run := _create(parents, version)) is not None:
            return version, run
        log.warning(
            "%s exists, and no run is written over: this one gets the next number.",
            folder_of(parents[0], version),
        )
    while True:  # another process may take the number in between
        taken = (folder for parent in parents for folder in parent.glob("version_*"))
        number = max((atomic_checkpoint.run_number(folder) for folder in taken), default=-1) + 1
        if (run := _create(parents, number)) is not None:
            return number, run


def folder_of(parent: Path, version: Version) -> Path:
    """Folder in which Lightning's loggers put a run of that version."""
    return parent / (version if isinstance(version, str) else f"version_{version}")


def _create(parents: Sequence[Path], version: Version) -> RunFolder | None:
    created: list[Path] = []
    above: list[Path] = []
    waiting = [folder_of(parent, version) for parent in dict.fromkeys(parents)]
    while waiting:
        folder = waiting[0]
        above += [path for path in folder.parents if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileNotFoundError:  # a refused run has just removed its parents
            continue
        except FileExistsError:
            for other in created:
                other.rmdir()
            return None
        created.append(waiting.pop(0))
    run = RunFolder(created, created=True, parents=above)
    run.lock.acquire(MOMENT)  # only `sweep` of another process may hold it
    return run


def of_trainer(trainer: Trainer) -> Path | None:
    """Folder for the files of a run; None in a fast_dev_run, which writes nothing.

    The folder of the first logger with a folder per run, else the trainer's default_root_dir.
    Collective: broadcast from rank 0.
    """
    if trainer.fast_dev_run:
        return None
    own = (each for each in trainer.loggers if isinstance(each, CSVLogger | TensorBoardLogger))
    logger = next(own, None)
    folder = trainer.default_root_dir if logger is None else logger.log_dir
    return Path(trainer.strategy.broadcast(folder))


def take_up(folder: Path) -> RunFolder:
    """Lock the folder of a run that has nothing left to train, to complete it.

    Raises:
        UserError: another process is using it.
    """
    run = RunFolder([folder], created=False)
    if not run.lock.acquire(MOMENT):
        raise UserError(
            f"the run {folder} is still at work in another process; wait for it, or end it."
        )
    return run


def sweep(parents: Iterable[Path]) -> None:
    """Remove partial files of interrupted writes in folders of runs whose process has ended."""
    for parent in parents:
        for path in parent.glob(f"*{PARTIAL}"):
            if path.is_symlink():  # link to the latest weights
                path.unlink(missing_ok=True)
        for mark in parent.glob(f"*/{LOCK}"):
            lock = Lock(mark)
            if lock.acquire():
                for path in mark.parent.rglob(f"*{PARTIAL}"):
                    atomic_checkpoint.discard(path)
                lock.release()


def finished(checkpoint: Path, limits: Any) -> Path | None:
    """Folder of the checkpoint's run, if the trainer's limits leave nothing to train, else None.

    None for a checkpoint that is not the latest of its run, as the run ended with other weights.

    Args:
        checkpoint: path of the checkpoint.
        limits: settings of the trainer with max_steps, max_epochs and max_time.
    """
    folder = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (folder / "config.yaml").is_file():
        return None
    progress = read_progress(checkpoint)
    ended = (
        _reached(progress.step, limits.max_steps)
        or _reached(progress.epochs, limits.max_epochs)
        or _time_is_up(progress.callbacks.get("Timer"), limits.max_time)
    )
    if not ended or atomic_checkpoint.latest([folder], "checkpoints/*.ckpt") != checkpoint:
        return None
    return folder


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and 0 <= limit <= count


def _time_is_up(state: dict[str, Any] | None, limit: str | timedelta | dict | None) -> bool:
    if state is None or limit is None:
        return False
    timer = Timer(limit if isinstance(limit, str | timedelta) else dict(limit))
    timer.load_state_dict(state)
    return timer.time_remaining() <= 0


def require_writable(folder: Path) -> None:
    """Check that a run folder can be written, without creating it.

    Raises:
        UserError: it cannot be written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(
            f"the folder of runs {folder} cannot be written ({error.strerror}); free it, or choose "
            "another with --trainer.logger."
        ) from error
