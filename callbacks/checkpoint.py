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

# prefixes that strategies and torch.compile insert into names of modules
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with this project's promises: see docs/checkpoints.md.

    Saves a checkpoint every `every_n_train_steps`, after the validation of that step if there is
    one; after the last step; and when the run is interrupted (Ctrl-C), terminated (SIGTERM) or
    fails, so that `--ckpt_path=last` resumes there. last.ckpt is a link to the latest.

    Args:
        every_n_train_steps: number of steps between checkpoints.
        save_top_k: number of checkpoints to keep, at least 2; -1 keeps all.
        save_async: whether training continues while a copy of the state is written.
        end_within: maximum seconds between a signal and the end of the run, with its checkpoint; a
            process that is still waiting then ends without saving.
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
                f"Checkpoint: save_top_k is {save_top_k}, but a single one may be damaged; give 2 "
                "or more, or -1."
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
        if isinstance(
            trainer.strategy.checkpoint_io, AsyncCheckpointIO
        ):  # it links before the file is written
            raise UserError(
                "the plugin AsyncCheckpointIO does not go with the Checkpoint callback; leave it "
                "out, and set save_async=true of the callback."
            )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the user chose one
            io = BackgroundCheckpointIO if self.save_async else DurableCheckpointIO
            trainer.strategy.checkpoint_io = io(agree=trainer.strategy.broadcast)

    # Schedule ------------------------------------------------------------------------------------
    #
    # A checkpoint is exact only between two steps: within a step the weights may be ahead of the
    # optimizer's count, the schedule or an average of the weights. So signals only set a flag, and
    # the run ends after a step, the same on all ranks. After a failure within a step nothing is
    # saved; with several ranks, after any failure, as the others may be in another collective.

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
        self._between_steps = False  # callbacks that may skip the step come before this one

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._logged = False  # Lightning logs after this hook
        loop = trainer.fit_loop.epoch_loop
        self._between_steps = not loop._should_accumulate()
        self._validation_due = sum(trainer.num_val_batches) > 0 and loop._should_check_val_fx(
            trainer.fit_loop._data_fetcher
        )
        if self._validation_due and trainer.global_step % self._every_n_train_steps == 0:
            self._defer_save_until_validation = True  # so that a resumed run does not repeat it
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
        """Save the last step, independent of `every_n_train_steps`."""
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
        # a failed disk would fail again; a run that did not begin has no state of its own
        if agreed and self._began and self._between_steps and not self._saving:
            super().on_exception(trainer, module, exception)
        self._release_signals()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().teardown(trainer, module, stage)
        if self._agreement is not None:
            self._agreement.close()
        received = supervisor.received
        if self._release_signals() and received is not None:
            signal.raise_signal(received)  # after the last step, the program handles it

    def _release_signals(self) -> bool:
        """Undo the changes of `on_train_start`; returns whether there were any."""
        self._agreement = None
        handled, self._handles_signals = self._handles_signals, False
        if handled:
            supervisor.restore()
        return handled

    # Writing -------------------------------------------------------------------------------------

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
        """Let all ranks write to a temporary folder, which is renamed when all are done."""
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

    # Content -------------------------------------------------------------------------------------

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
            UserError: the checkpoint has another seed or other frozen weights.
        """
        run = checkpoint.get("run")
        if run is None:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed = run["row"], run["validation_due"]
            loops = checkpoint["loops"]["fit_loop"]
            recut(loops, checkpoint["global_step"], trainer.accumulate_grad_batches)
            seed = getattr(module, "seed", None)
            if run["seed"] != seed:
                raise UserError(
                    f"the checkpoint was trained with the seed {run['seed']}, this run has {seed}:"
                    f" its noise would differ; resume it with --seed_everything={run['seed']}."
                )
        check_base(run["base"], self._frozen_base(trainer, module))

    def state_dict(self) -> dict[str, Any]:
        """Empty: a resumed run has its own folder, and equal runs write equal files."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignored, see `state_dict`; older checkpoints have paths."""

    def _frozen_base(self, trainer: Trainer, module: LightningModule) -> Base:
        """Files and hashes of the frozen weights; collective, read by the first rank."""
        if self._base is None:
            frozen = [
                _WRAPPERS.sub("", name)
                for name, parameter in module.named_parameters()
                if not parameter.requires_grad
            ]
            # of an encoder that was not built, the features are
            frozen += [f"{path}." for path in getattr(module, "left_out_paths", ())]
            sources = getattr(module, "weights", WeightFiles())
            read = trainer.is_global_zero
            self._base = trainer.strategy.broadcast(frozen_base(sources, frozen) if read else {})
        return self._base


def _not_written(path: Path, error: OSError | CheckpointException) -> UserError:
    """Error for a disk failure on this or another rank."""
    if isinstance(error, OSError):
        return atomic_checkpoint.not_written(path, error)
    rank, (cause, _) = next(iter(error.failures.items()))
    return atomic_checkpoint.not_written(path, OSError(f"rank {rank}: {cause}"))


def writes_folders(strategy: Strategy) -> bool:
    """Whether each rank of a strategy writes its own file: sharded saves of FSDP1 and FSDP2."""
    distributed = getattr(strategy, "_save_distributed_checkpoint", False)
    return distributed or getattr(strategy, "_state_dict_type", None) == "sharded"


def recut(fit_loop: dict[str, Any], step: int, micro_batches: int) -> None:
    """Set the saved state of Lightning's loops to `step` steps of `micro_batches` batches each.

    A step may have another number of micro-batches in the resumed run, as on fewer ranks.
    Lightning (2.6) counts only batches: its steps would begin and end in the middle of ours.
    """
    training = fit_loop["epoch_loop.batch_progress"]
    if training["current"]["processed"] != training["total"]["processed"]:
        return  # not the first epoch: the number of batches of the others is not saved
    more = step * micro_batches - training["total"]["processed"]
    for count in (training["total"], training["current"]):
        for name in count:
            count[name] += more


def between_steps(fit_loop: dict[str, Any], step: int, validation_due: bool) -> None:
    """Set the saved state of Lightning's loops to `step` completed steps, with nothing in progress.

    Lightning (2.6) resumes inside an unfinished step: then later step numbers are off by one, or a
    validation is skipped or only half run. It resumes exactly from two states: the end of a batch,
    and a validation in its first batch.
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
