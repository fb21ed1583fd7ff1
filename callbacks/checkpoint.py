"""Checkpoint schedule, additional state, and checks before a run resumes."""

from __future__ import annotations

import logging
import re
import shutil
import signal
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint import CheckpointException

from triptych.callbacks._checkpoint_io import BackgroundCheckpointIO, DurableCheckpointIO
from triptych.callbacks._resumed_log import Row, complete_log, continue_log, pending_row
from triptych.checkpoints import WeightFiles, atomic_checkpoint
from triptych.checkpoints.training_checkpoint import Base, check_base, frozen_base
from triptych.training.ranks import Agreement, take_over, watch_launched
from triptych.utils.errors import UserError
from triptych.utils.signals import Terminated, supervisor

log = logging.getLogger(__name__)

# Prefixes that strategies and torch.compile put between the names of modules.
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with this project's promises: see docs/checkpoints.md.

    A checkpoint every `every_n_train_steps`, after the validation of that step if there is one, one
    of the last step, and one when the run is interrupted (Ctrl-C), told to end (SIGTERM) or fails,
    so that `--ckpt_path=last` resumes there. last.ckpt is a link to the newest.

    Args:
        every_n_train_steps: steps between checkpoints.
        save_top_k: how many of them stay, at least 2; -1 keeps all.
        save_async: train on while a copy of the state is written.
        end_within: seconds after a signal in which the run must have saved and ended; a process
            that still waits then ends without.
    """

    def __init__(
        self,
        every_n_train_steps: int = 500,
        save_top_k: int = 2,
        save_async: bool = False,
        end_within: float = 120.0,
    ) -> None:
        if save_top_k != -1 and save_top_k < 2:
            raise UserError(
                f"Checkpoint: save_top_k is {save_top_k}, but one alone may be damaged; give 2 or "
                "more, or -1."
            )
        if end_within <= 0:
            raise UserError(f"Checkpoint: end_within must be above 0 seconds, not {end_within}.")
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every_n_train_steps,
            monitor="step",
            mode="max",
            save_top_k=save_top_k,
            save_last="link",
            save_on_exception=True,
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.save_async, self.end_within = save_async, end_within
        self._agreement: Agreement | None = None
        self._handles_signals = False
        self._began = False
        self._between_steps = True
        self._validation_due = False
        self._logged = True
        self._resumed: tuple[Row, bool] | None = None
        self._saving = False
        self._base: Base | None = None
        watch_launched()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        take_over(trainer)
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):  # links before it wrote
            raise UserError(
                "the plugin AsyncCheckpointIO does not go with the Checkpoint callback; leave it "
                "out, and set save_async=true of the callback."
            )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the user chose one
            io = BackgroundCheckpointIO if self.save_async else DurableCheckpointIO
            trainer.strategy.checkpoint_io = io(agree=trainer.strategy.broadcast)

    # When ----------------------------------------------------------------------------------------
    #
    # A checkpoint is exact only between two steps: in the middle the weights may have taken a step
    # that the optimizer's count, the schedule or an average of the weights have not. So signals
    # are noted and the run ends after a step, the same on all ranks, and what fails within one
    # leaves the checkpoint before it. With several ranks that holds for any failure: the others may
    # be in another collective than those of a save.

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._between_steps = True
        self._validation_due, self._logged, self._saving = False, True, False
        if self._resumed is not None:
            row, validation_due = self._resumed
            continue_log(trainer, Path(trainer.ckpt_path).resolve(), row, validation_due)
            self._resumed = None
        self._agreement = Agreement()
        self._handles_signals = supervisor.install(owner=False)
        supervisor.limit, supervisor.deferred = self.end_within, True

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = self._logged = True

    def on_validation_start(self, *_: Any) -> None:
        self._logged = True

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._between_steps = False  # callbacks that may refuse the step come before this one

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._logged = False  # Lightning does after this
        loop = trainer.fit_loop.epoch_loop
        self._between_steps = not loop._should_accumulate()
        self._validation_due = sum(trainer.num_val_batches) > 0 and loop._should_check_val_fx(
            trainer.fit_loop._data_fetcher
        )
        if self._validation_due and trainer.global_step % self._every_n_train_steps == 0:
            self._defer_save_until_validation = True  # so that a resumed run need not repeat it
        else:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        self._end_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._agreement is not None and not trainer.sanity_checking:
            self._end_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validation_due = False
        super().on_validation_end(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the last step, whatever `every_n_train_steps`."""
        self._logged = True
        unsaved = self._last_global_step_saved != trainer.global_step
        if self._began and unsaved and not trainer.fast_dev_run:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._resumed is not None:  # there was nothing left to train
            row, _ = self._resumed
            complete_log(trainer, Path(trainer.ckpt_path).resolve(), row)

    def _end_if_signalled(self, trainer: Trainer) -> None:
        number = self._agreement(supervisor.received or 0)
        if not number or not self._between_steps or trainer.global_step == trainer.max_steps:
            return
        name = signal.Signals(number).name
        sentence = f"{name}: the run ends after step {trainer.global_step}; {supervisor.resume}."
        raise supervisor.terminated(number, sentence if trainer.is_global_zero else None)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        agreed = trainer.world_size == 1 or isinstance(exception, Terminated)
        # a disk that failed would fail again; a run that did not begin has nothing of its own
        if agreed and self._began and self._between_steps and not self._saving:
            super().on_exception(trainer, module, exception)
        self._release_signals()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().teardown(trainer, module, stage)
        if self._agreement is not None:
            self._agreement.close()
        received = supervisor.received
        if self._release_signals() and received is not None:
            signal.raise_signal(received)  # it came after the last step: the program's to answer

    def _release_signals(self) -> bool:
        """Undo what `on_train_start` did; whether it did."""
        self._agreement = None
        handled, self._handles_signals = self._handles_signals, False
        if handled:
            supervisor.restore()
        return handled

    # How -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saving = True
        for logger in trainer.loggers:
            logger.save()
        if writes_folders(trainer.strategy):
            self._save_folder(trainer, Path(filepath))
        else:
            super()._save_checkpoint(trainer, filepath)
        self._saving = False

    def _save_folder(self, trainer: Trainer, path: Path) -> None:
        """Let all ranks write their files into a folder that gets its name when all are done."""
        partial = atomic_checkpoint.temporary_path(path)
        if trainer.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        trainer.strategy.barrier()
        try:
            super()._save_checkpoint(trainer, str(partial))
        except (OSError, CheckpointException) as error:
            raise _not_written(path, error) from error
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            atomic_checkpoint.commit_folder(partial, path, trainer.global_step)
        trainer.strategy.barrier()
        self._last_checkpoint_saved = str(path)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        io = trainer.strategy.checkpoint_io
        if not isinstance(io, DurableCheckpointIO):
            ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)
        elif trainer.is_global_zero:
            io.link(filepath, linkpath)

    # What ----------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["run"] = {
            "seed": getattr(module, "seed", None),
            "base": self._frozen_base(trainer, module),
            "row": {} if self._logged else pending_row(trainer),
            "validation_due": self._validation_due,
        }
        if trainer.global_step > 0:
            loops = checkpoint["loops"]["fit_loop"]
            between_steps(loops, trainer.global_step, self._validation_due)

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a checkpoint from which this run could not resume exactly.

        Raises:
            UserError: the checkpoint is of another seed or rests on other frozen weights.
        """
        made = checkpoint.get("run")
        if made is None:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed = made["row"], made["validation_due"]
            loops = checkpoint["loops"]["fit_loop"]
            recut(loops, checkpoint["global_step"], trainer.accumulate_grad_batches)
            seed = getattr(module, "seed", None)
            if made["seed"] != seed:
                raise UserError(
                    f"the checkpoint was trained with the seed {made['seed']}, this run has {seed}:"
                    f" its noise would differ; resume it with --seed_everything={made['seed']}."
                )
        check_base(made["base"], self._frozen_base(trainer, module))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed run has a folder of its own, and equal runs make equal files."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see `state_dict`; older checkpoints hold paths."""

    def _frozen_base(self, trainer: Trainer, module: LightningModule) -> Base:
        """Source of the frozen weights; all ranks call, the first one reads."""
        if self._base is None:
            frozen = [
                _WRAPPERS.sub("", name)
                for name, parameter in module.named_parameters()
                if not parameter.requires_grad
            ]
            sources = getattr(module, "weights", WeightFiles())
            read = trainer.is_global_zero
            self._base = trainer.strategy.broadcast(frozen_base(sources, frozen) if read else {})
        return self._base


def _not_written(path: Path, error: OSError | CheckpointException) -> UserError:
    """The sentence for a disk that failed on this rank, or on another."""
    if isinstance(error, OSError):
        return atomic_checkpoint.not_written(path, error)
    rank, (cause, _) = next(iter(error.failures.items()))
    return atomic_checkpoint.not_written(path, OSError(f"rank {rank}: {cause}"))


def writes_folders(strategy: Strategy) -> bool:
    """Whether the ranks of a strategy write a file each: FSDP2's and FSDP1's sharded saves."""
    distributed = getattr(strategy, "_save_distributed_checkpoint", False)
    return distributed or getattr(strategy, "_state_dict_type", None) == "sharded"


def recut(fit_loop: dict[str, Any], step: int, micro_batches: int) -> None:
    """Let the saved state of Lightning's loops count `step` steps of `micro_batches` batches each.

    A step of the same samples may be cut otherwise in the resumed run, as on fewer ranks.
    Lightning (2.6) counts only batches: its steps would begin and end in the middle of ours.
    """
    training = fit_loop["epoch_loop.batch_progress"]
    if training["current"]["processed"] != training["total"]["processed"]:
        return  # not the first epoch: of how many batches the others were is not saved
    more = step * micro_batches - training["total"]["processed"]
    for count in (training["total"], training["current"]):
        for name in count:
            count[name] += more


def between_steps(fit_loop: dict[str, Any], step: int, validation_due: bool) -> None:
    """Set the saved state of Lightning's loops to: `step` steps are done, nothing else is begun.

    Lightning (2.6) resumes inside an unfinished step; then the numbers of the steps that follow
    are off by one, or a validation is skipped, or only its other half is run. There are two
    states from which it resumes exactly: the end of a batch, and a validation in its first batch.
    """
    training = fit_loop["epoch_loop.batch_progress"]
    for count in (training["total"], training["current"]):
        done = count["processed"]
        count["ready"] = count["started"] = done
        count["completed"] = done if validation_due else done - 1
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1
    if not training["is_last_batch"]:  # the end of a run counts its last epoch as a finished one
        for count in (fit_loop["epoch_progress"]["total"], fit_loop["epoch_progress"]["current"]):
            count["processed"] = count["completed"] = count["ready"] - 1
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    before = validation["total"]["completed"]
    for name, done in (("total", before), ("current", 0)):
        count = validation[name]
        count["processed"] = count["completed"] = done
        count["ready"] = count["started"] = done + validation_due
